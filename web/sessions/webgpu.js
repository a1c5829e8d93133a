// ONNX Runtime Web's WebGPU provider behind the session contract of ARCHITECTURE.md.
//
// Everything that a step touches has a GPU buffer of its own from the start: the KV cache, the token ids, the
// candidates. A step writes a few bytes, runs, and maps one small buffer; it creates nothing, and its cost follows the
// conversation's length, not the cache's size.

import { Fault, WrongOutput, asFault } from "../fault.js";
import { adapterTensors, branchFeeds } from "./adapter.js";
import { borrow } from "./graphics.js";
import { createSession, externalData, importOrt, kvNames } from "./ort.js";
import { ASKED, LEAST_CONTEXT, Session } from "./session.js";

const SHORT_CHUNK = 24; // Below the 32 tokens from which ORT's attention takes its flash kernels for prefill.

/**
 * Open the model for `choice` (choose.js: build, name, context, chunk). Throws Fault manifest, memory, device or
 * internal, and WrongOutput where the device computes something else than the exporter did.
 */
export async function open({ manifest, files, base, onProgress, choice }) {
  let graphics;
  let session;
  try {
    graphics = await borrow();
    const { device } = graphics;
    const ort = await importOrt(base, choice);
    const name = manifest.graphs[choice.graph];
    const graph = await files.read(name);
    const total = manifest.weights.length + 1;
    const weights = await externalData(manifest, files, (done) => onProgress?.(done, total));
    const names = kvNames(manifest.kv);
    // Weights that found no room are zeros to ORT, which the check would take for a device that errs.
    device.pushErrorScope("out-of-memory");
    session = await createSession(ort, name, graph, {
      executionProviders: [{ name: "webgpu", device }],
      externalData: weights,
      // Outputs are bound to our buffers; this only switches ORT's binding of outputs on.
      preferredOutputLocation: "gpu-buffer",
    });
    const refused = await device.popErrorScope();
    if (refused) throw new Fault("memory", `The graphics device has no room for the model. ${refused.message}`);
    const adapters = adapterTensors(manifest, files);
    const opened = new WebGpuSession({ ort, session, graphics, manifest, names, choice, adapters });
    await opened.reserve();
    opened.adapt(new Map());
    await opened.check(manifest);
    onProgress?.(total, total);
    return opened;
  } catch (error) {
    let fault = asFault(error);
    if (fault.fault === "internal") fault = graphics?.fault ?? fault; // ORT's own says less than the device's.
    await session?.release().catch(() => {}); // It may not be able to say goodbye.
    graphics?.device.destroy();
    throw fault;
  }
}

class WebGpuSession extends Session {
  #ort;
  #session;
  #graphics;
  #device;
  #names;
  #kv;
  #k;
  #buffers = {};
  #cache = []; // Tensors [1, kv_heads, context, head_dim], in the order of #names.
  #branches = {}; // What the adapter in use feeds the graph, each a buffer of its own.

  constructor({ ort, session, graphics, manifest, names, choice, adapters }) {
    super({ ...choice, adapters, vocabulary: manifest.architecture.vocabulary });
    this.#ort = ort;
    this.#session = session;
    this.#graphics = graphics;
    this.#device = graphics.device;
    this.#names = names;
    this.#kv = manifest.kv;
    this.#k = manifest.top_k;
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
      places: this.#buffer(8 * this.chunk),
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
   * token decoded once more. A whole chunk, its prompt over and over, has to give what short ones give. Where only wider
   * prefills are wrong, the session keeps to short chunks: ORT 1.30's flash kernels build on the device's subgroup size
   * and are wrong on some devices (SwiftShader is one: the attention of 32 tokens comes out as noise, that of 31 agrees
   * with the CPU within 1e-5). It also compiles the shaders, which the first message would wait for otherwise. Throws
   * WrongOutput.
   */
  async check({ check, architecture }) {
    const known = check?.ids?.length > 0;
    const made = Array.from({ length: 2 * SHORT_CHUNK }, (_, i) => (i * 37 + 11) % architecture.vocabulary);
    const ids = Int32Array.from(known ? check.ids : made.slice(0, this.context));
    const wanted = known ? { ids: check.candidates, logits: check.logits } : await this.#short(ids);
    const right = (chunk) => this.#right(ids, chunk, wanted);
    const widest = Math.min(this.chunk, ids.length);
    const passes = await right(widest);
    if (passes && this.chunk <= Math.max(widest, SHORT_CHUNK)) return;
    const whole = Int32Array.from({ length: this.chunk }, (_, i) => ids[i % ids.length]);
    if (passes && (await this.#right(whole, this.chunk, await this.#short(whole)))) return;
    if (widest <= SHORT_CHUNK ? !passes : !(await right(SHORT_CHUNK))) {
      throw new WrongOutput("device", "The graphics chip computes something else than this model's exporter did.");
    }
    this.chunk = SHORT_CHUNK;
  }

  /** The candidates after `ids` where no more than SHORT_CHUNK tokens are prefilled at once. */
  async #short(ids) {
    return (await this.#twice(ids, Math.min(SHORT_CHUNK, this.chunk)))[0];
  }

  /** Whether `ids`, prefilled by `chunk` tokens, give the candidates `wanted`, and their last one decoded gives them too. */
  async #right(ids, chunk, wanted) {
    try {
      return (await this.#twice(ids, chunk)).every((found) => alike(wanted, found));
    } catch (error) {
      if (!(error instanceof WrongOutput)) throw error;
      this.rewind(0); // Not even numbers.
      return false;
    }
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
   * As every session's step. After a Fault memory or device the session is of no more use: ORT 1.30 keeps a failed run's
   * tensors bound, and the next run would read those.
   */
  async compute(ids, positions, total) {
    return this.#graphics.during(this.#run(ids, positions, total));
  }

  /** The processor may do better. */
  get garbled() {
    return new WrongOutput("device", "The graphics chip computes what is not a number.");
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
      ...this.#branches,
    };
    if (this.#session.inputNames.includes("position_ids")) {
      queue.writeBuffer(buffers.places, 0, BigInt64Array.from(ids, (_, i) => BigInt(this.length + i)));
      feeds.position_ids = this.#tensor(buffers.places, "int64", [1, ids.length]);
      // Slice reads this one on the CPU.
      feeds.past_sequence_length = new this.#ort.Tensor("int64", BigInt64Array.of(BigInt(this.length)), [1]);
    }
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

  adapt(tensors) {
    for (const tensor of Object.values(this.#branches)) tensor.gpuBuffer.destroy();
    this.#branches = {};
    for (const { name, dims, values } of branchFeeds(this.#session, tensors)) {
      const buffer = this.#buffer(values.byteLength);
      this.#device.queue.writeBuffer(buffer, 0, values);
      this.#branches[name] = this.#tensor(buffer, "float32", dims);
    }
  }

  /** Give everything back, the device included. */
  async close() {
    super.close();
    const session = this.#session;
    if (!session) return;
    this.#session = null;
    try {
      await session.release();
    } finally {
      const tensors = [...this.#cache, ...Object.values(this.#branches)];
      const buffers = [...Object.values(this.#buffers), ...tensors.map(({ gpuBuffer }) => gpuBuffer)];
      for (const buffer of buffers) buffer.destroy();
      this.#graphics.giveBack();
    }
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
