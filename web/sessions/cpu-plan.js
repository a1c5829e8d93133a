// The plan of the CPU session (written by exporter/plan.py, where its format is described), checked before anything is
// allocated: every index, range and shape that the kernels will trust. A plan that passes cannot make them read
// outside of what it names; one that does not is refused in words.

import { Fault } from "../fault.js";

export const FORMAT = 1;
const BYTES = { float16: 2, float32: 4, uint8: 1, int8: 1 };
const ZEROS = ["packed", "float", "minimum", "minimum_negated"];
const ACTIVATIONS = ["none", "silu", "gelu_tanh", "gelu_erf", "sigmoid", "tanh", "relu"];
const COMBINES = ["none", "mul", "add", "sub", "div"];
const MOST = 2 ** 31 - 1;

/** The plan in `text`, checked against the sizes of the files it points into. Throws Fault manifest. */
export function readPlan(text, manifest) {
  let plan;
  try {
    plan = JSON.parse(text);
  } catch (error) {
    throw refuse(`is not JSON (${error.message})`);
  }
  if (plan?.format !== FORMAT) throw refuse(`has format ${plan?.format}, this page reads ${FORMAT}`);
  new Check(plan, new Map(manifest.files.map((entry) => [entry.name, entry.bytes]))).all();
  return plan;
}

function refuse(what) {
  return new Fault("manifest", `The plan of the CPU session ${what}; export the model again.`);
}

/** Bytes that `text` holds as base64; -1 where it is none. */
function decodedBytes(text) {
  try {
    return typeof text === "string" ? atob(text).length : -1;
  } catch {
    return -1; // It has other characters.
  }
}

class Check {
  constructor(plan, files) {
    this.plan = plan;
    this.files = files;
  }

  all() {
    const { plan } = this;
    for (const key of ["context", "vocabulary", "top_k"]) this.count(plan[key], key);
    for (const key of ["tensors", "weights", "buffers", "caches", "ops"]) {
      if (!Array.isArray(plan[key]) || !plan[key].length) throw refuse(`has no ${key}`);
    }
    plan.tensors.forEach((tensor, i) => this.tensor(tensor, `tensor ${i}`));
    plan.weights.forEach((weights, i) => this.weights(weights, `weights ${i}`));
    plan.buffers.forEach((buffer, i) => {
      this.count(buffer?.width, `buffer ${i}'s width`);
      if (!["tokens", "asked"].includes(buffer.rows)) throw refuse(`gives buffer ${i} the rows ${buffer.rows}`);
    });
    plan.caches.forEach((cache, i) => {
      this.count(cache?.kv_heads, `cache ${i}'s kv_heads`);
      this.count(cache.head_dim, `cache ${i}'s head_dim`, 512);
      if (cache.head_dim % 8) throw refuse(`has a head_dim of ${cache.head_dim}, not a multiple of 8`);
    });
    plan.ops.forEach((op, i) => this.op(op, `operation ${i} (${op?.op})`));
    if (plan.ops.at(-1).op !== "top_k" || plan.ops.filter((op) => op.op === "top_k").length !== 1) {
      throw refuse("does not end in the one top_k");
    }
  }

  count(value, what, most = MOST) {
    if (!Number.isInteger(value) || value < 1 || value > most) throw refuse(`has ${value} as ${what}`);
    return value;
  }

  index(value, list, what) {
    if (!Number.isInteger(value) || value < 0 || value >= this.plan[list].length) {
      throw refuse(`names number ${value} of ${this.plan[list].length} ${list} in ${what}`);
    }
    return this.plan[list][value];
  }

  tensor(tensor, what) {
    const each = BYTES[tensor?.dtype];
    if (!each) throw refuse(`gives ${what} the dtype ${tensor?.dtype}`);
    this.count(tensor.elements, `${what}'s elements`);
    const bytes = tensor.elements * each;
    if (tensor.data !== undefined) {
      if (decodedBytes(tensor.data) !== bytes) throw refuse(`has ${what} cut short or damaged`);
      return;
    }
    const size = this.files.get(tensor.file);
    if (size === undefined) throw refuse(`reads ${tensor.file}, which the manifest does not list`);
    if (!Number.isSafeInteger(tensor.offset) || tensor.offset < 0 || tensor.offset + bytes > size) {
      throw refuse(`reads ${what} past the end of ${tensor.file}`);
    }
  }

  sized(index, elements, dtypes, what) {
    const tensor = this.index(index, "tensors", what);
    if (!dtypes.includes(tensor.dtype)) throw refuse(`has a ${tensor.dtype} where ${what} needs ${dtypes.join(" or ")}`);
    if (tensor.elements !== elements) throw refuse(`has ${tensor.elements} elements where ${what} needs ${elements}`);
  }

  floats(index, elements, what) {
    this.sized(index, elements, ["float32", "float16"], what);
  }

  /** `elements` scales or minima: floats, or fewer floats that integer factors make as many of. */
  scales(index, factors, elements, what) {
    if (factors === undefined) return this.floats(index, elements, what);
    this.sized(factors, elements, ["uint8", "int8"], `${what}'s factors`);
    const { elements: stored } = this.index(index, "tensors", what);
    if (!stored || elements % stored) throw refuse(`has ${stored} elements where ${what} needs a divisor of ${elements}`);
    this.floats(index, stored, what);
  }

  weights(weights, what) {
    const { rows, columns, bits, block } = weights ?? {};
    this.count(rows, `${what}'s rows`, 1 << 24);
    this.count(columns, `${what}'s columns`, 1 << 20);
    if (bits !== 4 && bits !== 8) throw refuse(`has ${what} of ${bits} bits`);
    const halves = block === 16 && bits === 8 && columns % 32 === 0 && weights.zeros === undefined;
    if (!Number.isInteger(block) || block < 1 || (block % 32 && !halves)) {
      throw refuse(`has ${what} in blocks of ${block}`);
    }
    const groups = Math.ceil(columns / block);
    const blocks = groups * (block / 32);
    if (Math.ceil(rows / 8) * blocks * (bits === 4 ? 128 : 256) > MOST) throw refuse(`has ${what} past 2 GiB`);
    this.sized(weights.values, rows * groups * block * bits / 8, ["uint8"], `${what}'s values`);
    this.scales(weights.scales, weights.factors, rows * groups, `${what}'s scales`);
    if (weights.zeros !== undefined) {
      const { kind, tensor, factors, shift } = weights.zeros ?? {};
      if (shift !== undefined && (!Number.isFinite(shift) || !kind?.startsWith("minimum"))) {
        throw refuse(`has zero points shifted by ${shift}`);
      }
      if (!ZEROS.includes(kind)) throw refuse(`has zero points of kind ${kind}`);
      if (kind === "packed") this.sized(tensor, rows * Math.ceil(groups * bits / 8), ["uint8"], `${what}'s zero points`);
      else this.scales(tensor, factors, rows * groups, `${what}'s zero points`);
    }
    if (weights.bias !== undefined) this.floats(weights.bias, rows, `${what}'s bias`);
  }

  /** An operand [buffer, first column] of which `width` columns are used; returns its kind of rows. */
  operand(value, width, rows, what) {
    if (!Array.isArray(value) || value.length !== 2) throw refuse(`has no operand in ${what}`);
    const buffer = this.index(value[0], "buffers", what);
    const column = value[1];
    if (!Number.isInteger(column) || column < 0 || column + width > buffer.width) {
      throw refuse(`reads columns ${column} to ${column + width} of ${buffer.width} in ${what}`);
    }
    if (rows && buffer.rows !== rows) throw refuse(`mixes rows of tokens and of asked positions in ${what}`);
    return buffer.rows;
  }

  op(op, what) {
    if (!op || typeof this[`_${op.op}`] !== "function") throw refuse(`has the unknown ${what}`);
    this[`_${op.op}`](op, what);
  }

  output(value, width, rows, what) {
    if (value?.[1] !== 0) throw refuse(`writes to a part of a buffer in ${what}`);
    return this.operand(value, width, rows, what);
  }

  _embed(op, what) {
    const weights = this.index(op.weights, "weights", what);
    if (weights.rows < this.plan.vocabulary) throw refuse("has fewer embeddings than its vocabulary");
    this.output(op.y, weights.columns, "tokens", what);
  }

  _norm(op, what) {
    this.count(op.width, `width in ${what}`);
    this.count(op.groups, `groups in ${what}`);
    const whole = op.width * op.groups;
    const rows = this.operand(op.x, whole, null, what);
    if (!Number.isFinite(op.epsilon)) throw refuse(`has no epsilon in ${what}`);
    this.floats(op.weight, op.width, `weight in ${what}`);
    if (op.skip) this.operand(op.skip, whole, rows, what);
    if (op.sum) this.output(op.sum, whole, rows, what);
    if (op.bias !== undefined) this.floats(op.bias, op.width, `bias in ${what}`);
    this.output(op.y, whole, rows, what);
  }

  _layer_norm(op, what) {
    this._norm(op, what);
    if (op.shift !== undefined) this.floats(op.shift, op.width, `shift in ${what}`);
  }

  _linear(op, what) {
    const weights = this.index(op.weights, "weights", what);
    const rows = this.operand(op.x, weights.columns, null, what);
    this.output(op.y, weights.rows, rows, what);
    if (op.x[0] === op.y[0]) throw refuse(`writes over what it reads in ${what}`);
  }

  _low_rank(op, what) {
    this.count(op.columns, `columns in ${what}`, 1 << 20);
    this.count(op.rows, `rows in ${what}`, 1 << 24);
    this.count(op.rank, `rank in ${what}`, 1 << 12);
    const same = this.plan.ops.filter((other) => other.op === "low_rank" && other.matrix === op.matrix);
    if (typeof op.matrix !== "string" || same.length !== 1) throw refuse(`has the branch ${op.matrix} twice`);
    const rows = this.operand(op.x, op.columns, null, what);
    this.output(op.y, op.rows, rows, what);
    if (op.x[0] === op.y[0]) throw refuse(`writes over what it reads in ${what}`);
  }

  _map(op, what) {
    this.count(op.width, `width in ${what}`);
    if (!ACTIVATIONS.includes(op.activation) || !COMBINES.includes(op.combine)) throw refuse(`has no such ${what}`);
    const rows = this.operand(op.a, op.width, null, what);
    if (op.b) this.operand(op.b, op.width, rows, what);
    else if (op.vector !== undefined) this.floats(op.vector, op.width, `vector in ${what}`);
    else if (op.combine !== "none" && !Number.isFinite(op.scalar)) throw refuse(`has no second operand in ${what}`);
    this.output(op.y, op.width, rows, what);
  }

  _attend(op, what) {
    const cache = this.index(op.cache, "caches", what);
    this.count(op.heads, `heads in ${what}`, 1 << 12);
    if (op.heads % cache.kv_heads) throw refuse(`has ${op.heads} heads on ${cache.kv_heads} kv heads`);
    this.operand(op.q, op.heads * cache.head_dim, "tokens", what);
    this.operand(op.k, cache.kv_heads * cache.head_dim, "tokens", what);
    this.operand(op.v, cache.kv_heads * cache.head_dim, "tokens", what);
    this.output(op.y, op.heads * cache.head_dim, "tokens", what);
    for (const key of ["scale", "softcap", "window"]) {
      if (!Number.isFinite(op[key]) || op[key] < 0) throw refuse(`has ${op[key]} as ${key} in ${what}`);
    }
    if (op.window > MOST || !Number.isInteger(op.window)) throw refuse(`has a window of ${op.window} in ${what}`);
    if (op.rotary !== undefined) {
      const half = this.count(op.rotary?.dim, `rotary dim in ${what}`, cache.head_dim) / 2;
      if (!Number.isInteger(half)) throw refuse(`has an odd rotary dim in ${what}`);
      const tables = op.rotary.switch === undefined ? 1 : 2;
      if (tables === 2) this.count(op.rotary.switch, `switch in ${what}`);
      this.floats(op.rotary.cos, tables * half * this.plan.context, `cos table in ${what}`);
      this.floats(op.rotary.sin, tables * half * this.plan.context, `sin table in ${what}`);
    }
  }

  _pick(op, what) {
    this.count(op.width, `width in ${what}`);
    this.operand(op.x, op.width, "tokens", what);
    this.output(op.y, op.width, "asked", what);
  }

  _top_k(op, what) {
    this.count(op.width, `width in ${what}`);
    if (op.width !== this.plan.vocabulary || this.plan.top_k > op.width) throw refuse(`has no such ${what}`);
    this.operand(op.x, op.width, "asked", what);
  }
}
