// Lays a checked plan out in one WebAssembly memory and turns its operations into the words that
// web/kernels/engine.c runs. The order of words in here is that of the structs there.

/** Of the words written here and of what the kernels export; web/kernels/engine.c has the same number. */
export const LAYOUT = 8;

const OP_WORDS = 32;
const STATE_WORDS = 12;
const STATE_THREADS = 4; // Its number among them.
const PATIENCE_SECONDS = 10; // A task takes milliseconds: a helper that holds one for so long has died.
const TICKET_BYTES = 16;
const TILE = 4;
export const SPAN = 256; // Positions that attention takes in one go; the KV cache is laid out by them.
export const PANEL = 8; // Outputs of a matrix that lie together (kernels/linear.h, low_rank.h).
const SLACK = 256; // Kernels read whole vectors: up to 15 bytes past a row's end, never past this.
const STACK = 1 << 16; // Each helper's own; the first thread has the megabyte that the linker reserves.
const KIND = {
  embed: 0, norm: 1, quantize: 2, linear: 3, map: 4, store_kv: 5, attend: 6, join: 7, pick: 8, top_k: 9, low_rank: 10, layer_norm: 11,
};
const ACTIVATION = { none: 0, silu: 1, gelu_tanh: 2, gelu_erf: 3, sigmoid: 4, tanh: 5, relu: 6 };
const COMBINE = { none: 0, mul: 1, add: 2, sub: 3, div: 4 };

const STAGING = 1 << 20; // Bytes of a shard that are read in one go.
const PAGE = 65536;
export const MOST_PAGES = 65535;

const up = (value, unit) => Math.ceil(value / unit) * unit;

/** Blocks of 32 inputs of a row of `weights`; where 16 inputs have a scale, the columns are a multiple of 32. */
export const blocksOf = (weights) => Math.ceil(weights.columns / weights.block) * (weights.block / 32);

/** Scales per block of 32 inputs. */
export const halvesOf = (weights) => (weights.block === 16 ? 2 : 1);

const STORED = { floats: 0, halfFloats: 1, halfPoints: 2 };

/** How scales and offsets of `weights` lie in memory (kernels/linear.h): as float16 where that loses nothing. */
function storedAs(weights, tensors) {
  const { scales, factors, zeros, bits, block } = weights;
  const isHalf = (tensor) => tensors[tensor].dtype === "float16";
  if (!isHalf(scales) || factors !== undefined || block === 16) return STORED.floats;
  if (zeros === undefined) return STORED.halfFloats;
  if (zeros.kind === "packed") return STORED.halfPoints;
  if (bits === 8 || !isHalf(zeros.tensor) || zeros.factors !== undefined || zeros.shift) return STORED.floats;
  return zeros.kind === "float" ? STORED.halfPoints : STORED.halfFloats;
}

/**
 * The layout of `plan` for a KV cache of `context` tokens (a multiple of SPAN), steps of at most `chunk` tokens with
 * `asked` asked positions, and `threads`. `start` is where free memory begins. Returns addresses in bytes and `pages`, the size of the memory.
 */
export function layOut(plan, { context, chunk, asked, threads, start }) {
  let end = start;
  const take = (bytes) => {
    const at = end;
    end = up(end + bytes + SLACK, 64);
    return at;
  };
  const rows = { tokens: up(chunk, TILE), asked: up(asked, TILE) };
  const map = { context, chunk, asked, threads, state: take(STATE_WORDS * 4), ids: take(chunk * 4) };
  map.stacks = Array.from({ length: threads - 1 }, () => take(STACK) + STACK);
  map.weights = plan.weights.map((weights) => {
    const panels = Math.ceil(weights.rows / 8);
    const blocks = blocksOf(weights);
    const stored = storedAs(weights, plan.tensors);
    const each = PANEL * (stored === STORED.floats ? 4 : 2);
    return {
      panels, blocks, stored,
      values: take(panels * blocks * (weights.bits === 4 ? 128 : 256)),
      scale: take(panels * blocks * each * halvesOf(weights)),
      offset: weights.zeros === undefined ? 0 : take(panels * blocks * each),
      bias: weights.bias === undefined ? 0 : take(panels * 32),
    };
  });
  const vectors = new Set();
  for (const op of plan.ops) {
    for (const tensor of [op.weight, op.bias, op.shift, op.vector, op.rotary?.cos, op.rotary?.sin]) {
      if (tensor !== undefined) vectors.add(tensor);
    }
  }
  map.vectors = new Map([...vectors].map((tensor) => [tensor, take(plan.tensors[tensor].elements * 4)]));
  map.spanBytes = 0;
  const inSpan = (bytes) => {
    const at = map.spanBytes;
    map.spanBytes = up(at + bytes, 64);
    return at;
  };
  const spans = plan.caches.map(({ kv_heads, head_dim }) => [
    ["keys", inSpan(kv_heads * SPAN * head_dim * 2)],
    ["keyScale", inSpan(kv_heads * SPAN * 4)],
    ["values", inSpan(kv_heads * SPAN * head_dim * 2)],
    ["valueScale", inSpan(kv_heads * SPAN * 4)],
  ]);
  const first = take(context / SPAN * map.spanBytes);
  map.caches = spans.map((parts) => Object.fromEntries(parts.map(([name, at]) => [name, first + at])));
  map.buffers = plan.buffers.map((buffer, i) => {
    const embeds = plan.ops.filter((op) => op.op === "embed" && op.y[0] === i);
    const floats = up(Math.max(buffer.width, ...embeds.map((op) => map.weights[op.weights].blocks * 32)), 32);
    return { at: take(rows[buffer.rows] * floats * 4), floats };
  });
  const widest = Math.max(...map.weights.map((weights) => weights.blocks));
  map.activations = { values: take(rows.tokens * widest * 64), scale: take(rows.tokens * widest * 4) };
  map.activations.sum = take(rows.tokens * widest * 4);
  map.branches = plan.ops.filter((op) => op.op === "low_rank").map(({ matrix, columns, rows, rank }) => {
    const ranks = up(rank, PANEL);
    return { matrix, columns, rows, rank, a: take(ranks * columns * 4), b: take(up(rows, PANEL) * ranks * 4) };
  });
  map.topValues = take(asked * plan.top_k * 4);
  map.topIds = take(asked * plan.top_k * 4);
  const attends = plan.ops.filter((op) => op.op === "attend").map((op) => ({ ...plan.caches[op.cache], heads: op.heads }));
  map.parts = threads > 1 ? take(Math.max(0, ...attends.map((attend) => partBytes(attend, context)))) : 0;
  const low = map.branches.map(({ rank }) => TILE * up(rank, PANEL) * 4);
  map.scratchBytes = up(Math.max(widest * 576, ...attends.map(attentionScratch), ...low), 64);
  map.scratch = take(map.scratchBytes * threads);
  map.stagingBytes = up(Math.max(STAGING, widest * PANEL * 32), 64); // A panel of the widest matrix has room.
  map.staging = take(map.stagingBytes);
  const program = link(plan, map);
  map.ops = take(program.length * 4);
  map.count = program.length / OP_WORDS;
  map.tickets = take(map.count * TICKET_BYTES);
  map.program = program;
  map.pages = Math.ceil(end / PAGE);
  return map;
}

/** Bytes that a tile of attention.c has in its thread's scratch memory. */
function attentionScratch({ head_dim: dim }) {
  return TILE * (SPAN * 6 + (SPAN / 32) * 4 + dim * 6) + SLACK;
}

/** Bytes that the spans of one token's attention leave for joining. */
function partBytes({ heads, head_dim: dim }, context) {
  return heads * (Math.ceil(context / SPAN) + 1) * (dim + 4) * 4;
}

/** Write the program and its state where the layout says. */
export function install(map, memory) {
  const words = new Int32Array(memory.buffer);
  words.set(map.program, map.ops / 4);
  words.set(
    [0, 0, 0, 0, map.threads, map.count, map.ops, map.tickets, map.ids, map.scratch, map.scratchBytes, PATIENCE_SECONDS],
    map.state / 4,
  );
}

/** Make the next step one of a single thread. */
export function runAlone(map, memory) {
  new Int32Array(memory.buffer)[map.state / 4 + STATE_THREADS] = 1;
}

const asBits = new DataView(new ArrayBuffer(4));
function bits(number) {
  asBits.setFloat32(0, number, true);
  return asBits.getInt32(0, true);
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
  const weightWords = (index) => {
    const { panels, blocks, stored, values, scale, offset, bias } = map.weights[index];
    const weights = plan.weights[index];
    return [weights.bits, halvesOf(weights), stored, panels * PANEL, blocks, values, scale, offset, bias];
  };
  const { values, scale, sum } = map.activations;
  let quantized = ""; // What the activations hold now, so that q, k and v of one input quantize it once.

  for (const op of plan.ops) {
    const rows = plan.buffers[(op.x ?? op.y)[0]].rows;
    if (op.op === "embed") emit("embed", rows, ...weightWords(op.weights), ...part(op.y));
    if (op.op === "norm" || op.op === "layer_norm") {
      emit(op.op, rows, ...part(op.x), ...part(op.skip), ...part(op.sum), ...part(op.y), vector(op.bias),
        vector(op.weight), vector(op.shift), bits(op.epsilon), op.width, op.groups);
    }
    if (op.op === "linear") {
      const weights = plan.weights[op.weights];
      const now = `${op.x} ${weights.columns} ${map.weights[op.weights].blocks}`;
      if (now !== quantized) {
        const { blocks } = map.weights[op.weights];
        emit("quantize", rows, ...part(op.x), weights.columns, blocks, values, scale, sum);
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
        cache.keys, cache.keyScale, cache.values, cache.valueScale, map.spanBytes, kv_heads, head_dim,
        vector(op.rotary?.cos), vector(op.rotary?.sin), op.rotary?.dim ?? 0, op.rotary?.interleaved ? 1 : 0,
        op.rotary?.switch ?? 0, (op.rotary?.dim ?? 0) / 2 * plan.context,
        op.heads, op.window, bits(op.scale), bits(op.softcap),
      ];
      emit("store_kv", rows, ...shared, ...part(op.k), ...part(op.v));
      emit("attend", rows, ...shared, ...part(op.q), ...part(op.y), map.parts);
      emit("join", rows, ...shared, ...part(op.q), ...part(op.y), map.parts);
    }
    if (op.op === "low_rank") {
      const branch = map.branches.find(({ matrix }) => matrix === op.matrix);
      branch.word = words.length * OP_WORDS + 9; // Which word of the program says how many panels of ranks there are.
      emit("low_rank", rows, ...part(op.x), ...part(op.y), branch.a, branch.b, op.columns, 0, up(op.rows, PANEL) / PANEL);
    }
    if (op.op === "pick") emit("pick", "asked", ...part(op.x), ...part(op.y), op.width);
    if (op.op === "top_k") emit("top_k", rows, ...part(op.x), map.topValues, map.topIds, op.width, plan.top_k);
    for (const written of [op.y, op.sum]) if (written && quantized.startsWith(`${written[0]},`)) quantized = "";
  }
  const program = new Int32Array(words.length * OP_WORDS);
  words.forEach((op, i) => program.set(op, i * OP_WORDS));
  return program;
}
