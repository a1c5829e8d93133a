// Our own int4 kernels behind the session contract of ARCHITECTURE.md: a flat plan of the graph (exporter/plan.py) runs
// in WebAssembly, one call per step, over the same weight shards that ONNX Runtime Web reads.

import { Fault, asFault } from "../fault.js";
import { twice } from "../patience.js";
import { adapterTensors } from "./adapter.js";
import { putAdapter } from "./cpu-adapter.js";
import { copyIn, copyOut } from "./cpu-kv.js";
import { LAYOUT, MOST_PAGES, SPAN, install, layOut, runAlone } from "./cpu-link.js";
import { load } from "./cpu-load.js";
import { readPlan } from "./cpu-plan.js";
import { ASKED, LEAST_CONTEXT, Session } from "./session.js";

const CHUNK = 128; // Tokens of prompt between two looks at Stop: about half a second.
const DRAFTS = 3; // Drafted tokens a step may check: with its own token they are one tile of four rows.
const HELPER_SECONDS = 10;
const START = 1 << 20; // Where free memory begins: the kernels have no data, only the linker's megabyte of stack.

/**
 * Open the model. `choice.threads` (choose.js) above 1 needs cross-origin isolation. Throws Fault manifest (a plan that
 * cannot be trusted), memory, start (the kernels do not come) or internal.
 */
export async function open({ manifest, files, base, onProgress, choice = {} }) {
  try {
    const plan = readPlan(new TextDecoder().decode(await files.read(manifest.plan)), manifest);
    const wished = self.crossOriginIsolated === false ? 1 : Math.max(1, choice.threads ?? 1);
    const { map, memory } = reserve(plan, manifest, { threads: wished, most: choice.context ?? Infinity });
    const { threads } = map;
    const name = threads > 1 ? "threads.wasm" : "alone.wasm";
    const { module, hash } = await compile(new URL(`kernels/${name}`, base));
    const { exports } = new WebAssembly.Instance(module, { env: { memory } });
    if (exports.layout?.() !== LAYOUT || !(exports.__heap_base?.value <= START)) {
      throw new Fault("start", `kernels/${name} is of another version than sessions/cpu.js; reload the page.`);
    }
    install(map, memory);
    const starting = startHelpers(module, memory, map);
    try {
      // The loader's worker has what a place has; what the place lost came into this one's memory.
      const aside = threads > 1 && files.kept && !plan.tensors.some(({ file }) => files.added.has(file));
      await (aside
        ? loadAside({ module, memory, plan, map, kept: files.kept }, onProgress)
        : load({ plan, map, memory, kernels: exports, files, onFile: onProgress }));
    } catch (error) {
      for (const helper of await starting) helper.terminate(); // Each holds the whole memory.
      throw error;
    }
    const adapters = adapterTensors(manifest, files);
    return new CpuSession({ plan, map, memory, exports, helpers: await starting, adapters, hash });
  } catch (error) {
    throw asFault(error);
  }
}

const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** The WebAssembly module at `url` and the hash of its bytes, "" where the browser gives none. */
async function compile(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Fault("start", `${url.pathname} answered ${response.status}.`);
  const bytes = await response.arrayBuffer();
  // Plain http has no hashes, nor a place for what they name.
  const digest = new Uint8Array((await self.crypto?.subtle?.digest("SHA-256", bytes)) ?? 0);
  return { module: await WebAssembly.compile(bytes), hash: hex(digest.subarray(0, 8)) };
}

/**
 * The layout and the memory of the largest KV cache that the machine gives: the model's whole context, else a half, a
 * quarter … of it; of each with `threads` if it can be shared, else for one thread.
 */
function reserve(plan, manifest, { threads, most }) {
  const whole = Math.min(plan.context, manifest.architecture.context, most);
  for (let context = whole; ; context = context >> 1) {
    const rounded = Math.ceil(context / SPAN) * SPAN;
    let pages;
    for (const count of new Set([threads, 1])) {
      const map = layOut(plan, { context: rounded, chunk: CHUNK, asked: ASKED, threads: count, start: START });
      map.positions = Math.min(context, whole);
      pages = map.pages;
      const memory = pages <= MOST_PAGES ? grant(pages, count > 1) : null;
      if (memory) return { map, memory };
    }
    if (context >> 1 < LEAST_CONTEXT) {
      throw new Fault("memory", `The model needs ${Math.ceil(pages / 16)} MiB in one piece, which is not to be had.`);
    }
  }
}

/** A memory of `pages` that never grows, or null. What may grow, shared, is reserved at once, and refused on phones. */
function grant(pages, shared) {
  try {
    return new WebAssembly.Memory({ initial: pages, maximum: pages, shared });
  } catch (error) {
    if (error instanceof RangeError) return null;
    throw error;
  }
}

/** load() in a worker, while this one has other things to do. */
function loadAside(job, onFile) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL("./cpu-loader.js", import.meta.url), { type: "module" });
    const end = (settle, value) => {
      worker.terminate();
      settle(value);
    };
    worker.onerror = ({ message }) => end(reject, workerFault("cpu-loader.js", message));
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
  const starts = map.stacks.map(async (stack, i) => {
    const job = { module, memory, state: map.state, thread: i + 1, stack };
    try {
      return await twice(() => startHelper(job));
    } catch (error) {
      console.warn("A helper thread of the CPU session does not start:", error.message);
      return null;
    }
  });
  return (await Promise.all(starts)).filter(Boolean);
}

function startHelper(job) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL("./cpu-pool.js", import.meta.url), { type: "module" });
    const fail = (fault) => {
      clearTimeout(late);
      worker.terminate();
      reject(fault);
    };
    const late = setTimeout(() => fail(new Fault("internal", "cpu-pool.js says nothing.")), HELPER_SECONDS * 1000);
    worker.onerror = ({ message }) => fail(workerFault("cpu-pool.js", message));
    worker.onmessage = () => {
      clearTimeout(late);
      resolve(worker);
    };
    worker.postMessage(job);
  });
}

/** The Fault of an error that a worker of `file` did not catch: without words, a file of it did not come. */
function workerFault(file, message) {
  return message ? new Fault("internal", `${file}: ${message}`) : new Fault("start", `${file} did not come.`);
}

/** Whether the rotation of a token can depend on the step that it comes in: that of longrope, about its switch. */
function switches(plan, positions) {
  return plan.ops.some(({ rotary }) => rotary?.switch < positions);
}

class CpuSession extends Session {
  #plan;
  #map;
  #memory;
  #exports;
  #helpers;

  constructor({ plan, map, memory, exports, helpers, adapters, hash }) {
    super({ vocabulary: plan.vocabulary, context: map.positions, chunk: map.chunk, name: "cpu", adapters });
    this.#plan = plan;
    this.#map = map;
    this.#memory = memory;
    this.#exports = exports;
    this.#helpers = helpers;
    this.drafts = switches(plan, map.positions) ? 0 : DRAFTS;
    this.kernels = `cpu-${LAYOUT}-${hash}`; // Snapshots of others are of no use here.
    if (helpers.length) this.runtime = `cpu ${helpers.length + 1}`;
    else runAlone(map, memory);
  }

  async compute(ids, positions) {
    new Int32Array(this.#memory.buffer, this.#map.ids, ids.length).set(ids);
    if (!this.#run(ids.length, positions)) {
      console.warn("A helper thread of the CPU session does not answer. It goes on, with this step too, on one thread.");
      this.#alone();
      this.#run(ids.length, positions);
    }
    const count = positions * this.#plan.top_k;
    return {
      ids: new Int32Array(this.#memory.buffer, this.#map.topIds, count).slice(),
      logits: new Float32Array(this.#memory.buffer, this.#map.topValues, count).slice(),
    };
  }

  /** Whether the kernels got through a step over the ids in place; false where a helper thread died holding a task. */
  #run(tokens, positions) {
    try {
      return this.#exports.step(this.#map.state, tokens, this.length, positions) === 0;
    } catch (error) {
      throw new Fault("internal", `The CPU kernels stopped: ${error.message}.`);
    }
  }

  /** Compute without helpers from now on. */
  #alone() {
    for (const helper of this.#helpers) helper.terminate();
    this.#helpers = [];
    this.runtime = "cpu 1";
    runAlone(this.#map, this.#memory);
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

  adapt(tensors) {
    putAdapter(this.#map, this.#memory, tensors);
  }

  /** The KV cache of the first `length` tokens, as bytes that `restore` takes in any session of the same `kernels`. */
  snapshot(length) {
    if (!(length >= 0 && length <= this.length)) throw new Fault("internal", `A snapshot of ${length} tokens.`);
    return copyOut(this.#plan, this.#map, this.#memory, length);
  }

  /** Make `bytes`, a snapshot of the tokens `ids`, the KV cache; false, and it is as before, if they do not fit. */
  restore(bytes, ids) {
    if (ids.length > this.context) return false;
    if (!copyIn(this.#plan, this.#map, this.#memory, ids.length, bytes)) return false;
    this.length = ids.length;
    return true;
  }

  close() {
    super.close();
    for (const helper of this.#helpers) helper.terminate();
    this.#helpers = [];
    this.#memory = null;
    this.#exports = null;
  }
}
