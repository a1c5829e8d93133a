// Lays a checked plan out in one WebAssembly memory and turns its operations into the words that
// web/kernels/engine.c runs. The order of words in here is that of the structs there.

/** Of the words written here; web/kernels/engine.c has the same number. */
export const LAYOUT = 1;

const OP_WORDS = 32;
const STATE_WORDS = 12;
const TICKET_BYTES = 16;
const TILE = 4;
const SLACK = 256; // Kernels read whole vectors: up to 15 bytes past a row's end, never past this.
const STACK = 1 << 16; // Each helper's own; the first thread has the megabyte that the linker reserves.
const KIND = { embed: 0, norm: 1, quantize: 2, linear: 3, map: 4, store_kv: 5, attend: 6, pick: 7, top_k: 8 };
const ACTIVATION = { none: 0, silu: 1, gelu_tanh: 2, gelu_erf: 3, sigmoid: 4, tanh: 5, relu: 6 };
const COMBINE = { none: 0, mul: 1, add: 2, sub: 3, div: 4 };

export const STAGING = 4 << 20;
const PAGE = 65536;
export const MOST_PAGES = 65535;

const up = (value, unit) => Math.ceil(value / unit) * unit;

/** Blocks of 32 inputs of a row of `weights`. */
export const blocksOf = (weights) => Math.ceil(weights.columns / weights.block) * (weights.block / 32);

/**
 * The layout of `plan` for a KV cache of `context` tokens (a multiple of 32), steps of at most `chunk` tokens with
 * `asked` asked positions, and `threads`. `start` is where free memory begins; `relaxed` tells which kernels run.
 * Returns addresses in bytes and `pages`, the size of the memory.
 */
export function layOut(plan, { context, chunk, asked, threads, start, relaxed }) {
  let end = start;
  const take = (bytes) => {
    const at = end;
    end = up(end + bytes + SLACK, 64);
    return at;
  };
  const rows = { tokens: up(chunk, TILE), asked: up(asked, TILE) };
  const map = { context, chunk, asked, threads, relaxed, state: take(STATE_WORDS * 4), ids: take(chunk * 4) };
  map.stacks = Array.from({ length: threads - 1 }, () => take(STACK) + STACK);
  map.weights = plan.weights.map((weights) => {
    const panels = Math.ceil(weights.rows / 8);
    const blocks = blocksOf(weights);
    return {
      panels, blocks,
      values: take(panels * blocks * (weights.bits === 4 ? 128 : 256)),
      scale: take(panels * blocks * 32),
      offset: weights.zeros === undefined ? 0 : take(panels * blocks * 32),
      bias: weights.bias === undefined ? 0 : take(panels * 32),
    };
  });
  const vectors = new Set();
  for (const op of plan.ops) {
    for (const tensor of [op.weight, op.bias, op.vector, op.rotary?.cos, op.rotary?.sin]) {
      if (tensor !== undefined) vectors.add(tensor);
    }
  }
  map.vectors = new Map([...vectors].map((tensor) => [tensor, take(plan.tensors[tensor].elements * 4)]));
  map.caches = plan.caches.map(({ kv_heads, head_dim }) => {
    const blocks = Math.ceil(head_dim / 32);
    return {
      keys: take(kv_heads * context * blocks * 32),
      keyScale: take(kv_heads * context * blocks * 4),
      values: take(kv_heads * context * head_dim),
      valueScale: take(kv_heads * context * 4),
    };
  });
  map.buffers = plan.buffers.map((buffer, i) => {
    const embeds = plan.ops.filter((op) => op.op === "embed" && op.y[0] === i);
    const floats = up(Math.max(buffer.width, ...embeds.map((op) => map.weights[op.weights].blocks * 32)), 32);
    return { at: take(rows[buffer.rows] * floats * 4), floats };
  });
  const widest = Math.max(...map.weights.map((weights) => weights.blocks));
  map.activations = { values: take(rows.tokens * widest * 64), scale: take(rows.tokens * widest * 4) };
  map.activations.sum = take(rows.tokens * widest * 4);
  map.topValues = take(asked * plan.top_k * 4);
  map.topIds = take(asked * plan.top_k * 4);
  map.scratchBytes = up(Math.max(widest * 256, ...plan.caches.map((cache) => attentionScratch(cache, context))), 64);
  map.scratch = take(map.scratchBytes * threads);
  map.staging = take(STAGING);
  const program = link(plan, map);
  map.ops = take(program.length * 4);
  map.count = program.length / OP_WORDS;
  map.tickets = take(map.count * TICKET_BYTES);
  map.program = program;
  map.pages = Math.ceil(end / PAGE);
  return map;
}

/** Bytes that attend_rows of attention.c puts into its thread's scratch memory. */
function attentionScratch({ head_dim: dim }, context) {
  const blocks = Math.ceil(dim / 32);
  return TILE * (context * 6 + (context / 32) * 8 + blocks * 32 * 6 + blocks * 8) + SLACK;
}

/** Write the program and its state where the layout says. */
export function install(map, memory) {
  const words = new Int32Array(memory.buffer);
  words.set(map.program, map.ops / 4);
  const patienceSeconds = 60;
  words.set(
    [0, 0, 0, 0, map.threads, map.count, map.ops, map.tickets, map.ids, map.scratch, map.scratchBytes, patienceSeconds],
    map.state / 4,
  );
}

const asBits = new DataView(new ArrayBuffer(4));
function bits(number) {
  asBits.setFloat32(0, number, true);
  return asBits.getInt32(0, true);
}

/**
 * Matrices whose input int8 per block of 32 serves badly (outliers beside small values): those that make queries, keys
 * and values, and those behind the gate. With int16 for them, SmolLM2's most likely token agrees with exact arithmetic
 * at 98.4 % instead of 96.9 % of positions (native ONNX Runtime at accuracy_level 4: 96.8 %), for a tenth of the speed.
 */
function sensitiveWeights(plan) {
  const found = new Set();
  const writer = new Map(); // buffer → the operation that last wrote it
  const mark = (op) => {
    if (op?.op === "linear") found.add(op.weights);
    if (op?.op === "norm" && !op.skip) mark(writer.get(op.x[0])); // a norm of queries or keys
  };
  for (const op of plan.ops) {
    if (op.op === "attend") [op.q, op.k, op.v].forEach(([buffer]) => mark(writer.get(buffer)));
    if (op.op === "linear" && writer.get(op.x[0])?.op === "map") found.add(op.weights);
    for (const written of [op.y, op.sum]) if (written) writer.set(written[0], op);
  }
  return found;
}

function link(plan, map) {
  const words = [];
  const emit = (kind, rows, ...fields) => {
    const op = new Int32Array(OP_WORDS);
    op.set([KIND[kind], rows === "asked" ? 1 : 0, ...fields]);
    words.push(op);
  };
  const part = (operand) => {
    if (!operand) return [0, 0];
    const buffer = map.buffers[operand[0]];
    return [buffer.at + operand[1] * 4, buffer.floats];
  };
  const vector = (tensor) => (tensor === undefined ? 0 : map.vectors.get(tensor));
  const sensitive = sensitiveWeights(plan);
  const wide = (index) => (!map.relaxed || plan.weights[index].bits === 8 || sensitive.has(index) ? 1 : 0);
  const weightWords = (index) => {
    const { panels, blocks, values, scale, offset, bias } = map.weights[index];
    return [plan.weights[index].bits, wide(index), panels * 8, blocks, values, scale, offset, bias];
  };
  const { values, scale, sum } = map.activations;
  let quantized = ""; // What the activations hold now, so that q, k and v of one input quantize it once.

  for (const op of plan.ops) {
    const rows = plan.buffers[(op.x ?? op.y)[0]].rows;
    if (op.op === "embed") emit("embed", rows, ...weightWords(op.weights), ...part(op.y));
    if (op.op === "norm") {
      emit("norm", rows, ...part(op.x), ...part(op.skip), ...part(op.sum), ...part(op.y), vector(op.bias),
        vector(op.weight), bits(op.epsilon), op.width, op.groups);
    }
    if (op.op === "linear") {
      const weights = plan.weights[op.weights];
      const now = `${op.x} ${weights.columns} ${map.weights[op.weights].blocks} ${wide(op.weights)}`;
      if (now !== quantized) {
        const { blocks } = map.weights[op.weights];
        emit("quantize", rows, ...part(op.x), weights.columns, blocks, wide(op.weights), values, scale, sum);
      }
      quantized = now;
      emit("linear", rows, ...weightWords(op.weights), values, scale, sum, ...part(op.y));
    }
    if (op.op === "map") {
      const b = op.vector === undefined ? part(op.b) : [vector(op.vector), 0];
      emit("map", rows, ...part(op.a), ...b, ...part(op.y), ACTIVATION[op.activation], COMBINE[op.combine],
        bits(op.scalar ?? 0), op.width);
    }
    if (op.op === "attend") {
      const cache = map.caches[op.cache];
      const { kv_heads, head_dim } = plan.caches[op.cache];
      const shared = [
        cache.keys, cache.keyScale, cache.values, cache.valueScale, map.context, kv_heads, head_dim,
        vector(op.rotary?.cos), vector(op.rotary?.sin), op.rotary?.dim ?? 0, op.rotary?.interleaved ? 1 : 0,
        op.heads, op.window, bits(op.scale), bits(op.softcap),
      ];
      emit("store_kv", rows, ...shared, ...part(op.k), ...part(op.v));
      emit("attend", rows, ...shared, ...part(op.q), ...part(op.y));
    }
    if (op.op === "pick") emit("pick", "asked", ...part(op.x), ...part(op.y), op.width);
    if (op.op === "top_k") emit("top_k", rows, ...part(op.x), map.topValues, map.topIds, op.width, plan.top_k);
    for (const written of [op.y, op.sum]) if (written && quantized.startsWith(`${written[0]},`)) quantized = "";
  }
  const program = new Int32Array(words.length * OP_WORDS);
  words.forEach((op, i) => program.set(op, i * OP_WORDS));
  return program;
}
