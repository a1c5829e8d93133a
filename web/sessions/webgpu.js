// ONNX Runtime Web's WebGPU provider behind the session contract of ARCHITECTURE.md.
//
// Everything that a step touches has a GPU buffer of its own from the start: the KV cache, the token ids, the
// candidates. A step writes a few bytes, runs, and maps one small buffer; it creates nothing, and its cost follows the
// conversation's length, not the cache's size.

import { Fault, WrongOutput, asFault } from "../fault.js";
import { externalData, importOrt, kvNames } from "./ort.js";

const ASKED = 16; // Most positions one step gives candidates for.
const SHORT_CHUNK = 24; // Below the 32 tokens from which ORT's attention takes its flash kernels for prefill.
const LEAST_CONTEXT = 512;
const FEATURES = ["shader-f16", "subgroups"]; // What ORT's kernels make use of where an adapter has it.

/**
 * Open the model for `choice` (choose.js: build, context, chunk, words). Throws Fault memory, device or internal, and
 * WrongOutput where the device computes something else than the exporter did.
 */
export async function open({ manifest, read, base, onProgress, choice }) {
  let device;
  let session;
  try {
    device = await requestDevice();
    const ort = await importOrt(base, choice);
    const graph = await read(manifest.graphs[choice.graph]);
    const total = manifest.weights.length + 1;
    const weights = await externalData(manifest, read, (done) => onProgress?.(done, total));
    const names = kvNames(manifest.kv);
    session = await ort.InferenceSession.create(graph, {
      executionProviders: [{ name: "webgpu", device }],
      externalData: weights,
      // Outputs are bound to our buffers; this only switches ORT's binding of outputs on.
      preferredOutputLocation: "gpu-buffer",
    });
    const opened = new WebGpuSession({ ort, session, device, manifest, names, choice });
    await opened.reserve();
    await opened.check(manifest);
    onProgress?.(total, total);
    return opened;
  } catch (error) {
    await session?.release();
    device?.destroy();
    throw asFault(error);
  }
}

/** A device with all that the adapter gives: ORT's kernels choose by these limits, and a KV cache wants large buffers. */
async function requestDevice() {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Fault("device", "There is no graphics adapter.");
  const requiredLimits = {};
  for (const name in adapter.limits) requiredLimits[name] = adapter.limits[name];
  return adapter.requestDevice({ requiredFeatures: FEATURES.filter((name) => adapter.features.has(name)), requiredLimits });
}

class WebGpuSession {
  #ort;
  #session;
  #device;
  #names;
  #kv;
  #k;
  #fault = null; // What the device reported between two steps.
  #lost; // Rejects when the device is lost.
  #buffers = {};
  #cache = []; // Tensors [1, kv_heads, context, head_dim], in the order of #names.

  constructor({ ort, session, device, manifest, names, choice }) {
    this.#ort = ort;
    this.#session = session;
    this.#device = device;
    this.#names = names;
    this.#kv = manifest.kv;
    this.#k = manifest.top_k;
    this.context = choice.context;
    this.chunk = Math.min(choice.chunk, this.context);
    this.length = 0;
    this.runtime = choice.words;
    this.#lost = device.lost.then(({ message }) => {
      throw new Fault("device", `The graphics device was lost (${message || "no reason was given"}).`);
    });
    this.#lost.catch(() => {}); // Nobody may be stepping when it happens; the next step will see it.
    device.addEventListener("uncapturederror", ({ error }) => {
      const kind = error instanceof GPUOutOfMemoryError ? "memory" : "device";
      this.#fault ??= new Fault(kind, `The graphics device reports: ${error.message}`);
    });
  }

  /** Take the KV cache for the whole context, or for half of it, a quarter … where the device has not that much. */
  async reserve() {
    const { layers, kv_heads: heads, head_dim: dim } = this.#kv;
    for (;;) {
      const dims = [1, heads, this.context, dim];
      const bytes = 4 * heads * this.context * dim;
      this.#device.pushErrorScope("out-of-memory");
      const buffers = Array.from({ length: 2 * layers }, () => this.#buffer(bytes));
      const refused = await this.#device.popErrorScope();
      if (!refused) {
        this.#cache = buffers.map((buffer) => this.#tensor(buffer, "float32", dims));
        break;
      }
      for (const buffer of buffers) buffer.destroy();
      if (this.context / 2 < LEAST_CONTEXT) {
        throw new Fault("memory", `The graphics device has no room for a KV cache of ${this.context} tokens.`);
      }
      this.context = Math.floor(this.context / 2);
      this.chunk = Math.min(this.chunk, this.context);
    }
    this.#buffers = {
      ids: this.#buffer(8 * this.chunk),
      positions: this.#buffer(8 * ASKED),
      last: this.#buffer(16),
      topIds: this.#buffer(8 * ASKED * this.#k),
      topLogits: this.#buffer(4 * ASKED * this.#k),
      readback: this.#device.createBuffer({
        size: 12 * ASKED * this.#k, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
      }),
    };
  }

  /**
   * Run the manifest's check: its prompt, prefilled at once, has to give the exporter's candidates, and so has its last
   * token decoded once more. Where only the prefill of 32 and more tokens is wrong, the session keeps to short chunks:
   * ORT 1.30's flash kernels build on the device's subgroup size and are wrong on some devices (SwiftShader is one: the
   * attention of 32 tokens comes out as noise, that of 31 agrees with the CPU within 1e-5). It also compiles the
   * shaders, which the first message would wait for otherwise. Throws WrongOutput.
   */
  async check({ check, architecture }) {
    const known = check?.ids?.length > 0;
    const made = Array.from({ length: 2 * SHORT_CHUNK }, (_, i) => (i * 37 + 11) % architecture.vocabulary);
    const ids = Int32Array.from(known ? check.ids : made.slice(0, this.context));
    const wanted = known ? { ids: check.candidates, logits: check.logits } : (await this.#twice(ids, SHORT_CHUNK))[0];
    const right = async (chunk) => (await this.#twice(ids, chunk)).every((found) => alike(wanted, found));
    const widest = Math.min(this.chunk, ids.length);
    if (await right(widest)) return;
    if (widest <= SHORT_CHUNK || !(await right(SHORT_CHUNK))) {
      throw new WrongOutput("device", "The graphics chip computes something else than this model's exporter did.");
    }
    this.chunk = SHORT_CHUNK;
  }

  /** The candidates after `ids`, prefilled so that the last chunk is a whole one, and then decoded: two of them. */
  async #twice(ids, chunk) {
    let prefilled;
    for (let end = ids.length % chunk || chunk; end <= ids.length; end += chunk) {
      prefilled = await this.step(ids.subarray(this.length, end));
    }
    this.rewind(ids.length - 1);
    const decoded = await this.step(ids.subarray(ids.length - 1));
    this.rewind(0);
    return [prefilled, decoded];
  }

  /**
   * Append `ids` (Int32Array, 1 to `chunk`) to the KV cache. The candidates of the last `positions` tokens (at most 16),
   * position after position: {ids: Int32Array, logits: Float32Array}, largest first. On an error the KV cache is as
   * before, unless the device was lost.
   */
  async step(ids, positions = 1) {
    const total = this.length + ids.length;
    if (!this.#session) throw new Fault("internal", "The session is closed.");
    if (total > this.context) throw new Fault("too_long", `${total} tokens do not fit into ${this.context}.`);
    if (ids.length < 1 || ids.length > this.chunk) throw new Fault("internal", `A step of ${ids.length} tokens.`);
    if (positions < 1 || positions > Math.min(ids.length, ASKED)) {
      throw new Fault("internal", `Candidates for ${positions} of ${ids.length} positions were asked for.`);
    }
    const work = this.#run(ids, positions, total);
    work.catch(() => {}); // Where the device is lost, ORT's own error comes later and says less.
    let candidates;
    try {
      candidates = await Promise.race([work, this.#lost]);
    } catch (error) {
      throw this.#fault ?? asFault(error);
    }
    if (this.#fault) throw this.#fault;
    this.length = total;
    return candidates;
  }

  async #run(ids, positions, total) {
    const { queue } = this.#device;
    const buffers = this.#buffers;
    const wanted = Array.from({ length: positions }, (_, i) => BigInt(ids.length - positions + i));
    queue.writeBuffer(buffers.ids, 0, BigInt64Array.from(ids, BigInt));
    queue.writeBuffer(buffers.positions, 0, BigInt64Array.from(wanted));
    queue.writeBuffer(buffers.last, 0, Int32Array.of(total - 1));
    const feeds = {
      input_ids: this.#tensor(buffers.ids, "int64", [1, ids.length]),
      positions: this.#tensor(buffers.positions, "int64", [positions]),
      seqlens_k: this.#tensor(buffers.last, "int32", [1]),
      // GroupQueryAttention reads this one on the CPU, to size its work.
      total_sequence_length: new this.#ort.Tensor("int32", Int32Array.of(total), []),
    };
    const fetches = {
      topk_ids: this.#tensor(buffers.topIds, "int64", [1, positions, this.#k]),
      topk_logits: this.#tensor(buffers.topLogits, "float32", [1, positions, this.#k]),
    };
    // One tensor as past and as present: GroupQueryAttention sees one buffer and appends in place.
    for (const [index, tensor] of this.#cache.entries()) {
      feeds[this.#names.past[index]] = tensor;
      fetches[this.#names.present[index]] = tensor;
    }
    await this.#session.run(feeds, fetches);
    return this.#readBack(positions * this.#k);
  }

  /** `count` ids and logits in one copy and one mapping: each mapping costs a round trip to the device. */
  async #readBack(count) {
    const { topIds, topLogits, readback } = this.#buffers;
    const encoder = this.#device.createCommandEncoder();
    encoder.copyBufferToBuffer(topIds, 0, readback, 0, 8 * count);
    encoder.copyBufferToBuffer(topLogits, 0, readback, 8 * count, 4 * count);
    this.#device.queue.submit([encoder.finish()]);
    await readback.mapAsync(GPUMapMode.READ, 0, 12 * count);
    const bytes = readback.getMappedRange(0, 12 * count);
    const candidates = {
      ids: Int32Array.from(new BigInt64Array(bytes, 0, count), Number),
      logits: Float32Array.from(new Float32Array(bytes, 8 * count, count)),
    };
    readback.unmap();
    return candidates;
  }

  #buffer(bytes) {
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    return this.#device.createBuffer({ size: Math.ceil(bytes / 16) * 16, usage });
  }

  #tensor(buffer, dataType, dims) {
    return this.#ort.Tensor.fromGpuBuffer(buffer, { dataType, dims });
  }

  /** Forget all but the first `length` tokens; what lies behind them is never read and is written over. */
  rewind(length) {
    if (!(length >= 0 && length <= this.length)) {
      throw new Fault("internal", `Cannot rewind ${this.length} tokens to ${length}.`);
    }
    this.length = length;
  }

  /** Give everything back, the device itself included. */
  async close() {
    const session = this.#session;
    this.#session = null;
    await session?.release();
    this.#device.destroy();
  }
}

/**
 * Whether `found` is `wanted` but for rounding: most of the likelier half of `wanted` is in it, with logits that differ
 * by less than a sixteenth of what lies between the first and the last. (Int8 activations differ by a fiftieth; the less
 * likely half may miss a place among the candidates for less.)
 */
function alike(wanted, found) {
  const logits = new Map(Array.from(found.ids, (id, i) => [id, found.logits[i]]));
  const tolerance = Math.abs(wanted.logits[0] - wanted.logits.at(-1)) / 16;
  const likelier = Array.from(wanted.ids).slice(0, Math.ceil(wanted.ids.length / 2));
  const near = likelier.filter((id, i) => Math.abs(logits.get(id) - wanted.logits[i]) <= tolerance);
  return near.length >= 0.75 * likelier.length;
}
