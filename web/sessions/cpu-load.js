// Fills the laid-out memory from the model's shards. Each is read piece by piece straight into the staging part of that
// memory and repacked from there: no copy of a shard is ever held.

import { source } from "../files.js";
import { halvesOf, STAGING } from "./cpu-link.js";

const ZERO = { none: 0, packed: 1, float: 2, minimum: 3, minimum_negated: 4 };
const BYTES = { float16: 2, float32: 4, uint8: 1, int8: 1 };

/**
 * Read every file of `plan` from `files` (files.js) and put its tensors where `map` says, with the packing functions of
 * `kernels` over `memory`. `onFile(done, count)` reports.
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

  file(name, opened) {
    this.#plan.tensors.forEach((tensor, i) => {
      if (tensor.file !== name) return;
      this.#tensor(i, new Part(opened, tensor.offset, tensor.elements * BYTES[tensor.dtype]));
    });
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
    const piece = Math.floor(STAGING / rowBytes / 8) * 8;
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
      return;
    }
    for (let done = 0; done < elements; done += STAGING / 2) {
      const count = Math.min(STAGING / 2, elements - done);
      this.#kernels.widen_half(this.#stage(part, done * 2, (done + count) * 2), to + done * 4, count);
    }
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
    const scales = this.#part(weights.scales, weights.factors, rows);
    const zeros = weights.zeros && this.#part(weights.zeros.tensor, weights.zeros.factors, rows);
    const piece = Math.floor(STAGING / 2 / Math.max(scales.rowBytes, zeros?.rowBytes ?? 1) / 8) * 8;
    for (let row = 0; row < rows; row += piece) {
      const count = Math.min(piece, rows - row);
      const from = this.#copy(scales.rows(row, count), this.#map.staging);
      const other = zeros ? this.#copy(zeros.rows(row, count), this.#map.staging + STAGING / 2) : 0;
      this.#kernels.pack_scales(
        bits, from, scales.half, ZERO[weights.zeros?.kind ?? "none"], other, zeros?.half ?? 0,
        place.scale, place.offset, row, count, place.blocks * halves, groups, (block / 32) * halves,
        weights.zeros?.shift ?? 0,
      );
    }
  }

  #copy(bytes, at) {
    this.#bytes.set(bytes, at);
    return at;
  }

  /** Scales, minima or zero points by rows; with `factors` they are multiplied out, float32. */
  #part(index, factors, rows) {
    const whole = factors === undefined ? this.#kept.get(index) : this.#products(index, factors);
    const rowBytes = whole.length / rows;
    return {
      rowBytes,
      half: factors === undefined && this.#plan.tensors[index].dtype === "float16" ? 1 : 0,
      rows: (first, count) => whole.subarray(first * rowBytes, (first + count) * rowBytes),
    };
  }

  #products(index, factors) {
    const { elements } = this.#plan.tensors[index];
    const each = this.#plan.tensors[factors].elements / elements;
    const bytes = this.#kept.get(factors);
    const integers = this.#plan.tensors[factors].dtype === "int8" ? new Int8Array(bytes.buffer) : bytes;
    const products = new Float32Array(elements * each);
    const piece = STAGING / 8;
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
    const { staging } = this.#map;
    const size = BYTES[this.#plan.tensors[index].dtype];
    const bytes = this.#kept.get(index).subarray(first * size, (first + count) * size);
    if (size === 4) this.#copy(bytes, staging);
    else this.#kernels.widen_half(this.#copy(bytes, staging + STAGING / 2), staging, count);
    return new Float32Array(this.#bytes.buffer, staging, count);
  }
}
