// ONNX Runtime Web's WASM provider behind the session contract of ARCHITECTURE.md, and what it shares with webgpu.js.
// The KV cache stays here, as ORT tensors; Python sees token ids and 64 candidates.

import { Fault, asFault } from "../fault.js";
import { adapterTensors, branchFeeds } from "./adapter.js";
import { Session } from "./session.js";

/** Open the model for `choice` (choose.js: build, name, threads, context, chunk). Throws Fault manifest, memory, start or internal. */
export async function open({ manifest, files, base, onProgress, choice }) {
  try {
    const ort = await importOrt(base, choice);
    const name = manifest.graphs[choice.graph];
    const graph = await files.read(name);
    const total = manifest.weights.length + 1;
    const weights = await externalData(manifest, files, (done) => onProgress?.(done, total));
    const session = await createSession(ort, name, graph, { executionProviders: ["wasm"], externalData: weights });
    onProgress?.(total, total);
    const opened = new WasmSession(ort, session, manifest, choice, adapterTensors(manifest, files));
    opened.adapt(new Map());
    return opened;
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

/**
 * ORT's session of `graph`, the bytes of the file `name`. Throws Fault manifest where it is the graph that is at fault:
 * what ORT finds in one it numbers, and nothing else.
 */
export async function createSession(ort, name, graph, options) {
  try {
    return await ort.InferenceSession.create(graph, options);
  } catch (error) {
    const fault = asFault(error);
    if (fault.fault !== "internal" || !fault.message.includes("ERROR_CODE")) throw fault;
    throw new Fault("manifest", `ONNX Runtime cannot open ${name}; export the model again. ${fault.message}`);
  }
}

/** The weight shards as ORT takes them: [{path, data}]. `report(files)` counts those that are here. */
export async function externalData(manifest, files, report) {
  const data = [];
  for (const path of manifest.weights) {
    data.push({ path, data: await files.read(path) });
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

class WasmSession extends Session {
  #ort;
  #session;
  #names;
  #empty;
  #branches = {}; // What the adapter in use feeds the graph.
  #past = []; // Tensors [1, kv_heads, at least `length`, head_dim], or none while the KV cache is empty.

  constructor(ort, session, manifest, choice, adapters) {
    super({ ...choice, adapters, vocabulary: manifest.architecture.vocabulary });
    this.#ort = ort;
    this.#session = session;
    this.#names = kvNames(manifest.kv);
    this.#empty = [1, manifest.kv.kv_heads, 0, manifest.kv.head_dim];
  }

  async compute(ids, positions, total) {
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
      ...this.#branches,
    };
    for (const [index, name] of this.#names.past.entries()) {
      feeds[name] = this.#past[index] ?? new Tensor("float32", new Float32Array(0), this.#empty);
    }
    return feeds;
  }

  adapt(tensors) {
    const feeds = branchFeeds(this.#session, tensors);
    const made = feeds.map(({ name, dims, values }) => [name, new this.#ort.Tensor("float32", values, dims)]);
    this.#branches = Object.fromEntries(made);
  }

  /**
   * Forget all but the first `length` tokens. Nothing is copied: GroupQueryAttention reads `seqlens_k` tokens of a
   * past buffer that may be longer, and writes the new ones behind them.
   */
  rewind(length) {
    super.rewind(length);
    if (length === 0) this.#drop();
  }

  #drop() {
    for (const tensor of this.#past) tensor.dispose();
    this.#past = [];
  }

  async close() {
    super.close();
    const session = this.#session;
    this.#session = null;
    this.#drop();
    await session?.release();
  }
}
