// Fills the laid-out memory from the model's shards. Weights are repacked piece by piece as each shard is read; a
// shard is let go before the next one, so that what stays is the packed form alone.

import { halvesOf, STAGING } from "./cpu-link.js";

const ZERO = { none: 0, packed: 1, float: 2, minimum: 3, minimum_negated: 4 };
const BYTES = { float16: 2, float32: 4, uint8: 1, int8: 1 };

/**
 * Read every file of `plan` through `read` in the order given and put its tensors where `map` says, with the packing
 * functions of `kernels` over `memory`. `onFile(index, count)` reports.
 */
export async function load({ plan, map, memory, kernels, read, onFile }) {
  const loader = new Loader(plan, map, memory, kernels);
  const names = [...new Set(plan.tensors.map((tensor) => tensor.file).filter(Boolean))].sort();
  loader.inline();
  for (const [index, name] of names.entries()) {
    loader.file(name, await read(name));
    onFile?.(index + 1, names.length);
  }
  loader.finish();
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
      if (tensor.data !== undefined) this.#tensor(i, Uint8Array.from(atob(tensor.data), (c) => c.charCodeAt(0)));
    });
  }

  file(name, content) {
    this.#plan.tensors.forEach((tensor, i) => {
      if (tensor.file !== name) return;
      const end = tensor.offset + tensor.elements * BYTES[tensor.dtype];
      this.#tensor(i, content.subarray(tensor.offset, end));
    });
  }

  #tensor(index, bytes) {
    if (bytes.length !== this.#plan.tensors[index].elements * BYTES[this.#plan.tensors[index].dtype]) {
      throw new Error(`Tensor ${index} of the plan is cut short in ${this.#plan.tensors[index].file}.`);
    }
    if (this.values.has(index)) this.#values(this.values.get(index), bytes);
    if (this.#map.vectors.has(index)) this.#floats(index, bytes, this.#map.vectors.get(index));
    if (this.rest.has(index)) this.#kept.set(index, bytes.slice());
  }

  #stage(bytes, at = this.#map.staging) {
    this.#bytes.set(bytes, at);
    return at;
  }

  #values(index, bytes) {
    const { rows, bits } = this.#plan.weights[index];
    const { blocks, values } = this.#map.weights[index];
    const rowBytes = blocks * bits * 4;
    const piece = Math.floor(STAGING / rowBytes / 8) * 8;
    for (let row = 0; row < rows; row += piece) {
      const count = Math.min(piece, rows - row);
      const at = this.#stage(bytes.subarray(row * rowBytes, (row + count) * rowBytes));
      this.#kernels.pack_values(bits, at, values, row, count, blocks);
    }
  }

  #floats(index, bytes, to) {
    const { dtype, elements } = this.#plan.tensors[index];
    if (dtype === "float32") {
      this.#bytes.set(bytes, to);
      return;
    }
    for (let done = 0; done < elements; done += STAGING / 2) {
      const count = Math.min(STAGING / 2, elements - done);
      this.#kernels.widen_half(this.#stage(bytes.subarray(done * 2, (done + count) * 2)), to + done * 4, count);
    }
  }

  /** Scales, zero points and biases, once everything is read. */
  finish() {
    this.#plan.weights.forEach((weights, index) => {
      const place = this.#map.weights[index];
      if (weights.bias !== undefined) this.#floats(weights.bias, this.#kept.get(weights.bias), place.bias);
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
      const from = this.#stage(scales.rows(row, count));
      const other = zeros ? this.#stage(zeros.rows(row, count), this.#map.staging + STAGING / 2) : 0;
      this.#kernels.pack_scales(
        bits, from, scales.half, ZERO[weights.zeros?.kind ?? "none"], other, zeros?.half ?? 0,
        place.scale, place.offset, row, count, place.blocks * halves, groups, (block / 32) * halves,
        weights.zeros?.shift ?? 0,
      );
    }
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
    if (size === 4) this.#stage(bytes);
    else this.#kernels.widen_half(this.#stage(bytes, staging + STAGING / 2), staging, count);
    return new Float32Array(this.#bytes.buffer, staging, count);
  }
}
