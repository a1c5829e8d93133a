// ONNX Runtime Web behind the session contract of ARCHITECTURE.md: WebGPU or WASM, whichever graph it is given.
// The KV cache stays here, as ORT tensors (on WebGPU in GPU buffers); Python sees token ids and 64 candidates.

import { Fault, asFault } from "../fault.js";

const KV_BUDGET_BYTES = 2 ** 30;
const CHUNK = { wasm: 64, webgpu: 256 }; // Tokens of prompt between two looks at Stop: one to two seconds at worst.
const SHORT_CHUNK = 24; // Below the 32 tokens from which ORT's WebGPU attention takes its flash kernels for prefill.
const TRIAL = 2 * SHORT_CHUNK;

/** Open the model for `choice` (choose.js). Throws Fault memory, device or internal. */
export async function open({ manifest, read, base, onProgress, choice }) {
  try {
    const ort = await import(new URL(`ort/ort.${choice.build}.min.mjs`, base).href);
    ort.env.wasm.wasmPaths = new URL("ort/", base).href;
    ort.env.wasm.numThreads = choice.threads;
    ort.env.logLevel = "error";
    const graph = await read(manifest.graphs[choice.graph]);
    const externalData = [];
    const total = manifest.weights.length + 1;
    for (const [index, path] of manifest.weights.entries()) {
      externalData.push({ path, data: await read(path) });
      onProgress?.(index + 1, total);
    }
    const names = new Names(manifest.kv);
    const webgpu = choice.graph === "webgpu";
    const session = await ort.InferenceSession.create(graph, {
      executionProviders: [webgpu ? "webgpu" : "wasm"],
      externalData,
      ...(webgpu && {
        preferredOutputLocation: Object.fromEntries(names.present.map((name) => [name, "gpu-buffer"])),
      }),
    });
    const opened = new OrtSession(ort, session, manifest, names, choice);
    if (webgpu) await opened.tryLongChunks(manifest.architecture.vocabulary);
    onProgress?.(total, total);
    return opened;
  } catch (error) {
    throw asFault(error);
  }
}

/** The graph's KV names, layer by layer: `past[i]` is what `present[i]` of the step before becomes. */
class Names {
  constructor(kv) {
    const write = (pattern, layer, kind) => pattern.replace("{layer}", layer).replace("{kind}", kind);
    this.past = [];
    this.present = [];
    for (let layer = 0; layer < kv.layers; layer += 1) {
      for (const kind of ["key", "value"]) {
        this.past.push(write(kv.past, layer, kind));
        this.present.push(write(kv.present, layer, kind));
      }
    }
  }
}

class OrtSession {
  #ort;
  #session;
  #names;
  #empty;
  #past = []; // Tensors [1, kv_heads, at least `length`, head_dim], or none while the KV cache is empty.

  constructor(ort, session, manifest, names, choice) {
    const { kv_heads, head_dim, layers } = manifest.kv;
    this.#ort = ort;
    this.#session = session;
    this.#names = names;
    this.#empty = [1, kv_heads, 0, head_dim];
    const bytesPerToken = 2 * layers * kv_heads * head_dim * Float32Array.BYTES_PER_ELEMENT;
    this.context = Math.min(manifest.architecture.context, Math.floor(KV_BUDGET_BYTES / bytesPerToken));
    this.chunk = Math.min(this.context, CHUNK[choice.graph]);
    this.length = 0;
    this.runtime = choice.words;
  }

  /**
   * Append `ids` (Int32Array, 1 to `chunk`) to the KV cache. The candidates of the last `positions` tokens, position
   * after position: {ids: Int32Array, logits: Float32Array}, largest first. On an error the KV cache is as before.
   */
  async step(ids, positions = 1) {
    const total = this.length + ids.length;
    if (total > this.context) throw new Fault("too_long", `${total} tokens do not fit into ${this.context}.`);
    let results;
    try {
      results = await this.#session.run(this.#feeds(ids, positions, total), this.#fetches());
    } catch (error) {
      throw asFault(error);
    }
    const { topk_ids: topIds, topk_logits: topLogits } = results;
    const candidates = { ids: Int32Array.from(topIds.data, Number), logits: Float32Array.from(topLogits.data) };
    topIds.dispose();
    topLogits.dispose();
    for (const tensor of this.#past) tensor.dispose();
    this.#past = this.#names.present.map((name) => results[name]);
    this.length = total;
    return candidates;
  }

  /**
   * Prefill the same tokens in one step and in two, and keep to short chunks where the two disagree. ORT 1.30's flash
   * kernels build on the device's subgroup size and are wrong on some devices (SwiftShader is one: the attention of 32
   * and more tokens comes out as noise, that of 31 agrees with the CPU within 1e-5). It also compiles the shaders, which
   * the first message would wait for otherwise.
   */
  async tryLongChunks(vocabulary) {
    if (this.chunk < TRIAL) return;
    const ids = Int32Array.from({ length: TRIAL }, (_, i) => (i * 37 + 11) % vocabulary);
    const whole = await this.step(ids);
    this.rewind(0);
    await this.step(ids.subarray(0, SHORT_CHUNK));
    const parts = await this.step(ids.subarray(SHORT_CHUNK));
    this.rewind(0);
    if (!alike(whole, parts)) this.chunk = SHORT_CHUNK;
  }

  #feeds(ids, positions, total) {
    const { Tensor } = this.#ort;
    const wanted = Array.from({ length: positions }, (_, i) => BigInt(ids.length - positions + i));
    const feeds = {
      input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      positions: new Tensor("int64", BigInt64Array.from(wanted), [positions]),
      seqlens_k: new Tensor("int32", Int32Array.of(total - 1), [1]),
      total_sequence_length: new Tensor("int32", Int32Array.of(total), []),
    };
    for (const [index, name] of this.#names.past.entries()) {
      feeds[name] = this.#past[index] ?? new Tensor("float32", new Float32Array(0), this.#empty);
    }
    return feeds;
  }

  #fetches() {
    return ["topk_ids", "topk_logits", ...this.#names.present];
  }

  /**
   * Forget all but the first `length` tokens. Nothing is copied: GroupQueryAttention reads `seqlens_k` tokens of a
   * past buffer that may be longer, and writes the new ones behind them.
   */
  rewind(length) {
    if (length > this.length) throw new Fault("internal", `Cannot rewind ${this.length} tokens to ${length}.`);
    this.length = length;
    if (length === 0) this.#drop();
  }

  #drop() {
    for (const tensor of this.#past) tensor.dispose();
    this.#past = [];
  }

  async close() {
    this.#drop();
    await this.#session.release();
  }
}

/**
 * Whether two lists of candidates are one but for rounding: most ids in both, with logits that differ by less than a
 * quarter of what lies between the first and the last. (Int8 activations differ by a fiftieth, noise by all of it.)
 */
function alike(first, second) {
  const logits = new Map(Array.from(first.ids, (id, i) => [id, first.logits[i]]));
  const tolerance = 0.25 * (second.logits[0] - second.logits.at(-1));
  const near = Array.from(second.ids).filter((id, i) => Math.abs(logits.get(id) - second.logits[i]) <= tolerance);
  return near.length >= 0.75 * second.ids.length;
}
