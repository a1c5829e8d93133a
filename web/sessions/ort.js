// ONNX Runtime Web's WASM provider behind the session contract of ARCHITECTURE.md, and what it shares with webgpu.js.
// The KV cache stays here, as ORT tensors; Python sees token ids and 64 candidates.

import { Fault, asFault } from "../fault.js";

/** Open the model for `choice` (choose.js: build, threads, context, chunk, words). Throws Fault memory or internal. */
export async function open({ manifest, read, base, onProgress, choice }) {
  try {
    const ort = await importOrt(base, choice);
    const graph = await read(manifest.graphs[choice.graph]);
    const total = manifest.weights.length + 1;
    const weights = await externalData(manifest, read, (done) => onProgress?.(done, total));
    const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData: weights });
    onProgress?.(total, total);
    return new WasmSession(ort, session, manifest, choice);
  } catch (error) {
    throw asFault(error);
  }
}

/** ORT Web's module of `build` (wasm, webgpu or jspi), its own files on the site at `base`. */
export async function importOrt(base, { build, threads }) {
  const ort = await import(new URL(`ort/ort.${build}.min.mjs`, base).href);
  ort.env.wasm.wasmPaths = new URL("ort/", base).href;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  return ort;
}

/** The weight shards as ORT takes them: [{path, data}]. `report(files)` counts those that are here. */
export async function externalData(manifest, read, report) {
  const data = [];
  for (const path of manifest.weights) {
    data.push({ path, data: await read(path) });
    report(data.length);
  }
  return data;
}

/** The graph's KV names, layer by layer: `past[i]` is what `present[i]` of the step before becomes. */
export function kvNames(kv) {
  const names = { past: [], present: [] };
  const write = (pattern, layer, kind) => pattern.replace("{layer}", layer).replace("{kind}", kind);
  for (let layer = 0; layer < kv.layers; layer += 1) {
    for (const kind of ["key", "value"]) {
      names.past.push(write(kv.past, layer, kind));
      names.present.push(write(kv.present, layer, kind));
    }
  }
  return names;
}

class WasmSession {
  #ort;
  #session;
  #names;
  #empty;
  #past = []; // Tensors [1, kv_heads, at least `length`, head_dim], or none while the KV cache is empty.

  constructor(ort, session, manifest, choice) {
    this.#ort = ort;
    this.#session = session;
    this.#names = kvNames(manifest.kv);
    this.#empty = [1, manifest.kv.kv_heads, 0, manifest.kv.head_dim];
    this.context = choice.context;
    this.chunk = Math.min(this.context, choice.chunk);
    this.length = 0;
    this.runtime = choice.words;
  }

  /**
   * Append `ids` (Int32Array, 1 to `chunk`) to the KV cache. The candidates of the last `positions` tokens, position
   * after position: {ids: Int32Array, logits: Float32Array}, largest first. On an error the KV cache is as before.
   */
  async step(ids, positions = 1) {
    const total = this.length + ids.length;
    if (!this.#session) throw new Fault("internal", "The session is closed.");
    if (total > this.context) throw new Fault("too_long", `${total} tokens do not fit into ${this.context}.`);
    let results;
    try {
      results = await this.#session.run(this.#feeds(ids, positions, total), [
        "topk_ids", "topk_logits", ...this.#names.present,
      ]);
    } catch (error) {
      throw asFault(error);
    }
    const { topk_ids: topIds, topk_logits: topLogits } = results;
    const candidates = { ids: Int32Array.from(topIds.data, Number), logits: Float32Array.from(topLogits.data) };
    this.#drop();
    this.#past = this.#names.present.map((name) => results[name]);
    this.length = total;
    return candidates;
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

  /**
   * Forget all but the first `length` tokens. Nothing is copied: GroupQueryAttention reads `seqlens_k` tokens of a
   * past buffer that may be longer, and writes the new ones behind them.
   */
  rewind(length) {
    if (!(length >= 0 && length <= this.length)) {
      throw new Fault("internal", `Cannot rewind ${this.length} tokens to ${length}.`);
    }
    this.length = length;
    if (length === 0) this.#drop();
  }

  #drop() {
    for (const tensor of this.#past) tensor.dispose();
    this.#past = [];
  }

  async close() {
    const session = this.#session;
    this.#session = null;
    this.#drop();
    await session?.release();
  }
}
