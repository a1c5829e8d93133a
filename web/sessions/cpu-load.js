// Fills the laid-out memory from the model's shards. Each is read piece by piece straight into the staging part of that
// memory and repacked from there: no copy of a shard is ever held.

import { Fault } from "../fault.js";
import { source } from "../files.js";
import { halvesOf } from "./cpu-link.js";

const ZERO = { none: 0, packed: 1, float: 2, minimum: 3, minimum_negated: 4 };
const BYTES = { float16: 2, float32: 4, uint8: 1, int8: 1 };

/**
 * Read every file of `plan` from `files` (files.js) and put its tensors where `map` says, with the packing functions of
 * `kernels` over `memory`. `onFile(done, count)` reports. Throws Fault manifest for scales and vectors that are no finite
 * numbers, and what `files` throws.
 */
export async function load({ plan, map, memory, kernels, files, onFile }) {
  const loader = new Loader(plan, map, memory, kernels);
  const names = [...new Set(plan.tensors.map((tensor) => tensor.file).filter(Boolean))].sort();
  loader.inline();
  for (const [index, name] of names.entries()) {
    const opened = await files.open(name);
    try {
      loader.file(name, opened);
    } finally {
      opened.close();
    }
    files.letGo([name]);
    onFile?.(index + 1, names.length);
  }
  loader.finish();
}

/** A part of an open file: `read(view, at)` fills `view` from the part's byte `at` on. */
class Part {
  constructor(opened, offset, length) {
    this.opened = opened;
    this.offset = offset;
    this.length = length;
  }

  read(view, at) {
    this.opened.read(view, this.offset + at);
    return view;
  }
}

class Loader {
  #plan;
  #map;
  #bytes;
  #kernels;
  #kept = new Map(); // Tensors that wait for another file: scales and zero points of one matrix.

  constructor(plan, map, memory, kernels) {
    this.#plan = plan;
    this.#map = map;
    this.#bytes = new Uint8Array(memory.buffer);
    this.#kernels = kernels;
    this.values = new Map(plan.weights.map((weights, i) => [weights.values, i]));
    this.rest = new Set(plan.weights.flatMap(({ scales, factors, zeros, bias }) => [
      scales, factors, zeros?.tensor, zeros?.factors, bias,
    ]));
  }

  inline() {
    this.#plan.tensors.forEach((tensor, i) => {
      if (tensor.data === undefined) return;
      const bytes = Uint8Array.from(atob(tensor.data), (c) => c.charCodeAt(0));
      this.#tensor(i, new Part(source("plan.json", bytes), 0, bytes.length));
    });
  }

  /** Read the file's tensors as they follow one another: a source may forget what is behind. */
  file(name, opened) {
    const own = [...this.#plan.tensors.entries()].filter(([, tensor]) => tensor.file === name);
    for (const [i, tensor] of own.sort(([, one], [, other]) => one.offset - other.offset)) {
      this.#tensor(i, new Part(opened, tensor.offset, tensor.elements * BYTES[tensor.dtype]));
    }
  }

  #tensor(index, part) {
    if (this.values.has(index)) this.#values(this.values.get(index), part);
    if (this.#map.vectors.has(index)) this.#floats(index, part, this.#map.vectors.get(index));
    if (this.rest.has(index)) this.#kept.set(index, part.read(new Uint8Array(part.length), 0));
  }

  /** Bytes `from` to `to` of `part` in the staging memory; their address. */
  #stage(part, from, to) {
    const at = this.#map.staging;
    part.read(this.#bytes.subarray(at, at + to - from), from);
    return at;
  }

  #values(index, part) {
    const { rows, bits } = this.#plan.weights[index];
    const { blocks, values } = this.#map.weights[index];
    const rowBytes = blocks * bits * 4;
    const piece = Math.floor(this.#map.stagingBytes / rowBytes / 8) * 8;
    for (let row = 0; row < rows; row += piece) {
      const count = Math.min(piece, rows - row);
      const at = this.#stage(part, row * rowBytes, (row + count) * rowBytes);
      this.#kernels.pack_values(bits, at, values, row, count, blocks);
    }
  }

  #floats(index, part, to) {
    const { dtype, elements } = this.#plan.tensors[index];
    if (dtype === "float32") {
      part.read(this.#bytes.subarray(to, to + part.length), 0);
      this.#finite(index, to, 0, elements);
      return;
    }
    const piece = this.#map.stagingBytes / 2;
    for (let done = 0; done < elements; done += piece) {
      const count = Math.min(piece, elements - done);
      const at = this.#stage(part, done * 2, (done + count) * 2);
      this.#finite(index, at, 1, count);
      this.#kernels.widen_half(at, to + done * 4, count);
    }
  }

  /** Refuse `count` numbers of tensor `index` at `at` (float16 where `half`) if one is infinite or no number. */
  #finite(index, at, half, count) {
    if (this.#kernels.are_finite(at, half, count)) return;
    const { file = "plan.json" } = this.#plan.tensors[index];
    throw new Fault("manifest", `Tensor ${index} of the plan, in ${file}, is not of finite numbers; export the model again.`);
  }

  /** Scales, zero points and biases, once everything is read. */
  finish() {
    this.#plan.weights.forEach((weights, index) => {
      const place = this.#map.weights[index];
      if (weights.bias !== undefined) {
        const bias = this.#kept.get(weights.bias);
        this.#floats(weights.bias, new Part(source("the biases", bias), 0, bias.length), place.bias);
      }
      this.#scales(weights, place);
    });
    this.#kept.clear();
  }

  #scales(weights, place) {
    const { rows, bits, block, columns } = weights;
    const groups = Math.ceil(columns / block);
    const halves = halvesOf(weights);
    const half = this.#map.stagingBytes / 2;
    const scales = this.#part(weights.scales, weights.factors, rows);
    const zeros = weights.zeros && this.#part(weights.zeros.tensor, weights.zeros.factors, rows);
    const piece = Math.floor(half / Math.max(scales.rowBytes, zeros?.rowBytes ?? 1) / 8) * 8;
    for (let row = 0; row < rows; row += piece) {
      const count = Math.min(piece, rows - row);
      const from = this.#rows(scales, row, count, this.#map.staging);
      const other = zeros ? this.#rows(zeros, row, count, this.#map.staging + half) : 0;
      this.#kernels.pack_scales(
        bits, from, scales.half, ZERO[weights.zeros?.kind ?? "none"], other, zeros?.half ?? 0,
        place.stored, place.scale, place.offset, row, count, place.blocks * halves, groups, (block / 32) * halves,
        weights.zeros?.shift ?? 0,
      );
    }
  }

  /** `count` rows of a part of #part, from `first` on, at `at`. */
  #rows(part, first, count, at) {
    const bytes = part.rows(first, count);
    this.#copy(bytes, at);
    if (part.each) this.#finite(part.index, at, part.half, bytes.length / part.each);
    return at;
  }

  #copy(bytes, at) {
    this.#bytes.set(bytes, at);
    return at;
  }

  /**
   * Scales, minima or zero points by rows; with `factors` they are multiplied out, float32. `each` is the bytes of a
   * float, 0 of packed zero points.
   */
  #part(index, factors, rows) {
    const whole = factors === undefined ? this.#kept.get(index) : this.#products(index, factors);
    const rowBytes = whole.length / rows;
    const dtype = factors === undefined ? this.#plan.tensors[index].dtype : "float32";
    return {
      index, rowBytes,
      half: dtype === "float16" ? 1 : 0,
      each: dtype.startsWith("float") ? BYTES[dtype] : 0,
      rows: (first, count) => whole.subarray(first * rowBytes, (first + count) * rowBytes),
    };
  }

  #products(index, factors) {
    const { elements } = this.#plan.tensors[index];
    const each = this.#plan.tensors[factors].elements / elements;
    const bytes = this.#kept.get(factors);
    const integers = this.#plan.tensors[factors].dtype === "int8" ? new Int8Array(bytes.buffer) : bytes;
    const products = new Float32Array(elements * each);
    const piece = this.#map.stagingBytes / 8;
    for (let done = 0; done < elements; done += piece) {
      const count = Math.min(piece, elements - done);
      const values = this.#widened(index, done, count);
      for (let i = done * each; i < (done + count) * each; i++) {
        products[i] = values[Math.floor(i / each) - done] * integers[i];
      }
    }
    return new Uint8Array(products.buffer);
  }

  /** `count` numbers of a float16 or float32 tensor from `first` on, as float32 in the staging area. */
  #widened(index, first, count) {
    const { staging, stagingBytes } = this.#map;
    const size = BYTES[this.#plan.tensors[index].dtype];
    const bytes = this.#kept.get(index).subarray(first * size, (first + count) * size);
    const at = this.#copy(bytes, size === 4 ? staging : staging + stagingBytes / 2);
    this.#finite(index, at, size === 2 ? 1 : 0, count);
    if (size === 2) this.#kernels.widen_half(at, staging, count);
    return new Float32Array(this.#bytes.buffer, staging, count);
  }
}
