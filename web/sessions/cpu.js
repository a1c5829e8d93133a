// Our own int4 kernels behind the session contract of ARCHITECTURE.md: a flat plan of the graph (exporter/plan.py) runs
// in WebAssembly, one call per step, over the same weight shards that ONNX Runtime Web reads.

import { Fault, asFault } from "../fault.js";
import { copyIn, copyOut } from "./cpu-kv.js";
import { LAYOUT, MOST_PAGES, install, layOut } from "./cpu-link.js";
import { load } from "./cpu-load.js";
import { readPlan } from "./cpu-plan.js";

const CHUNK = 128; // Tokens of prompt between two looks at Stop: about half a second.
const ASKED = 16; // Most positions one step gives candidates for.
const DRAFTS = 3; // Drafted tokens a step may check: with its own token they are one tile of four rows.
const LEAST_CONTEXT = 512;
const HELPER_SECONDS = 10;

// A function with one instruction of relaxed SIMD (i16x8.relaxed_q15mulr_s).
const RELAXED_SIMD = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0,
  65, 1, 253, 15, 65, 2, 253, 15, 253, 145, 2, 11,
);

/**
 * Open the model. `choice.threads` (choose.js) above 1 needs cross-origin isolation; `choice.build` may force
 * "relaxed" or "plain" kernels. Throws Fault manifest (a plan that cannot be trusted), memory or internal.
 */
export async function open({ manifest, files, base, onProgress, choice = {} }) {
  try {
    const plan = readPlan(new TextDecoder().decode(await files.read(manifest.plan)), manifest);
    const relaxed = choice.build ? choice.build === "relaxed" : WebAssembly.validate(RELAXED_SIMD);
    const threads = self.crossOriginIsolated === false ? 1 : Math.max(1, choice.threads ?? 1);
    const name = `${relaxed ? "relaxed" : "plain"}${threads > 1 ? "-threads" : ""}.wasm`;
    const module = await compile(new URL(`kernels/${name}`, base));
    const { map, memory } = reserve(plan, manifest, { threads, most: choice.context ?? Infinity });
    const { exports } = new WebAssembly.Instance(module, { env: { memory } });
    if (exports.layout?.() !== LAYOUT) {
      throw new Fault("download", `kernels/${name} is of another version than sessions/cpu.js; reload the page.`);
    }
    install(map, memory);
    const [helpers] = await Promise.all([
      startHelpers(module, memory, map),
      threads > 1 && files.kept
        ? loadAside({ module, memory, plan, map, kept: files.kept }, onProgress)
        : load({ plan, map, memory, kernels: exports, files, onFile: onProgress }),
    ]);
    const words = choice.words ?? `processor, ${threads > 1 ? `${threads} threads` : "one thread"}`;
    return new CpuSession({ plan, map, memory, exports, helpers, words });
  } catch (error) {
    throw asFault(error);
  }
}

async function compile(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Fault("download", `${url.pathname} answered ${response.status}.`);
  return WebAssembly.compile(await response.arrayBuffer());
}

/** The largest KV cache the machine gives: the model's whole context, else a half, a quarter … of it. */
function reserve(plan, manifest, { threads, most }) {
  const whole = Math.min(plan.context, manifest.architecture.context, most);
  const start = 1 << 20; // __heap_base: the kernels have no data, only the linker's megabyte of stack.
  for (let context = whole; ; context = context >> 1) {
    const rounded = Math.ceil(context / 32) * 32;
    const map = layOut(plan, { context: rounded, chunk: CHUNK, asked: ASKED, threads, start });
    map.positions = Math.min(context, whole);
    if (map.pages <= MOST_PAGES) {
      try {
        return { map, memory: new WebAssembly.Memory(sizes(map.pages, threads > 1)) };
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
      }
    }
    if (context >> 1 < LEAST_CONTEXT) {
      throw new Fault("memory", `The model needs ${Math.ceil(map.pages / 16)} MiB in one piece, which is not to be had.`);
    }
  }
}

function sizes(pages, shared) {
  return shared ? { initial: pages, maximum: MOST_PAGES, shared } : { initial: pages };
}

/** load() in a worker, while this one has other things to do. */
function loadAside(job, onFile) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL("./cpu-loader.js", import.meta.url), { type: "module" });
    const end = (settle, value) => {
      worker.terminate();
      settle(value);
    };
    worker.onerror = (event) => end(reject, new Fault("internal", `cpu-loader.js: ${event.message}`));
    worker.onmessage = ({ data }) => {
      if (data.fault) end(reject, new Fault(data.fault, data.message));
      else if (data.loaded) end(resolve);
      else onFile?.(data.done, data.total);
    };
    worker.postMessage(job);
  });
}

/** Helper workers, asleep and waiting for steps. Those that do not come up are left out. */
async function startHelpers(module, memory, map) {
  const starts = map.stacks.map((stack, i) => new Promise((resolve) => {
    const worker = new Worker(new URL("./cpu-pool.js", import.meta.url), { type: "module" });
    const late = setTimeout(() => fail(), HELPER_SECONDS * 1000);
    const fail = () => {
      clearTimeout(late);
      worker.terminate();
      resolve(null);
    };
    worker.onerror = fail;
    worker.onmessage = () => {
      clearTimeout(late);
      resolve(worker);
    };
    worker.postMessage({ module, memory, state: map.state, thread: i + 1, stack });
  }));
  return (await Promise.all(starts)).filter(Boolean);
}

class CpuSession {
  #plan;
  #map;
  #memory;
  #exports;
  #helpers;

  constructor({ plan, map, memory, exports, helpers, words }) {
    this.#plan = plan;
    this.#map = map;
    this.#memory = memory;
    this.#exports = exports;
    this.#helpers = helpers;
    this.context = map.positions;
    this.chunk = Math.min(map.chunk, this.context);
    this.length = 0;
    this.drafts = DRAFTS;
    this.runtime = words;
    this.kernels = `cpu-${LAYOUT}`; // Snapshots of others are of no use here.
  }

  /**
   * Append `ids` (Int32Array, 1 to `chunk`) to the KV cache. The candidates of the last `positions` tokens (at most 16),
   * position after position: {ids: Int32Array, logits: Float32Array}, largest first. On an error the KV cache is as
   * before.
   */
  async step(ids, positions = 1) {
    const { vocabulary, top_k: k } = this.#plan;
    const total = this.length + ids.length;
    if (!this.#memory) throw new Fault("internal", "The session is closed.");
    if (total > this.context) throw new Fault("too_long", `${total} tokens do not fit into ${this.context}.`);
    if (ids.length < 1 || ids.length > this.chunk) throw new Fault("internal", `A step of ${ids.length} tokens.`);
    if (positions < 1 || positions > Math.min(ids.length, ASKED)) {
      throw new Fault("internal", `Candidates for ${positions} of ${ids.length} positions were asked for.`);
    }
    for (const id of ids) if (!(id >= 0 && id < vocabulary)) throw new Fault("internal", `There is no token ${id}.`);
    new Int32Array(this.#memory.buffer, this.#map.ids, ids.length).set(ids);
    let failed;
    try {
      failed = this.#exports.step(this.#map.state, ids.length, this.length, positions);
    } catch (error) {
      throw new Fault("internal", `The CPU kernels stopped: ${error.message}.`);
    }
    if (failed) throw new Fault("internal", "A helper thread of the CPU session has died; load the model again.");
    this.length = total;
    return {
      ids: new Int32Array(this.#memory.buffer, this.#map.topIds, positions * k).slice(),
      logits: new Float32Array(this.#memory.buffer, this.#map.topValues, positions * k).slice(),
    };
  }

  /** All logits of the last step's position `index`, for measuring: float32 [vocabulary]. */
  logits(index = 0) {
    const [number, column] = this.#plan.ops.at(-1).x;
    const { at, floats } = this.#map.buffers[number];
    return new Float32Array(this.#memory.buffer, at + (index * floats + column) * 4, this.#plan.vocabulary).slice();
  }

  /** Bytes of the whole WebAssembly memory: weights, KV cache and working space. */
  get bytes() {
    return this.#map.pages * 65536;
  }

  /** Forget all but the first `length` tokens; what lies behind them is written over. */
  rewind(length) {
    if (!(length >= 0 && length <= this.length)) {
      throw new Fault("internal", `Cannot rewind ${this.length} tokens to ${length}.`);
    }
    this.length = length;
  }

  /** The KV cache of the first `length` tokens, as bytes that `restore` takes in any session of the same `kernels`. */
  snapshot(length) {
    if (!(length >= 0 && length <= this.length)) throw new Fault("internal", `A snapshot of ${length} tokens.`);
    return copyOut(this.#plan, this.#map, this.#memory, length);
  }

  /** Make `bytes`, a snapshot of `length` tokens, the KV cache; false, and it is as before, if they do not fit. */
  restore(bytes, length) {
    if (!(length >= 0 && length <= this.context)) return false;
    if (!copyIn(this.#plan, this.#map, this.#memory, length, bytes)) return false;
    this.length = length;
    return true;
  }

  close() {
    for (const helper of this.#helpers) helper.terminate();
    this.#helpers = [];
    this.#memory = null;
    this.#exports = null;
  }
}
