/* Rotary embedding, the KV cache and attention; described in attention.h. */
#include "attention.h"

#include "linear.h"
#include "quantize.h"

enum { MAX_HEAD = 512 };

/* Largest integers. Sums stay in int32: KEY_TOP * (2^31 / KEY_TOP / head_dim) * head_dim for scores, and for outputs
 * 4095 * 16383 * BLOCK < 2^31. */
enum { KEY_TOP = 4095, VALUE_TOP = 4095, PROBABILITY_TOP = 16383 };
static const float NEVER = -1e30f; /* the score of a key that a query does not see */

/* One head at `position`, rotated and multiplied by `scale`. Dimensions past `rotary` are only scaled. */
static void rotate(const float *x, float *y, int dim, const Rotary *r, int position, float scale) {
  int half = r->rotary / 2, i = 0;
  const float *cos = r->cos + position * half, *sin = r->sin + position * half;
  vec factor = f_splat(scale);
  if (!r->interleaved) {
    for (; i + 4 <= half; i += 4) {
      vec a = wasm_f32x4_mul(load(x + i), factor), b = wasm_f32x4_mul(load(x + half + i), factor);
      vec c = load(cos + i), s = load(sin + i);
      store(y + i, wasm_f32x4_sub(wasm_f32x4_mul(a, c), wasm_f32x4_mul(b, s)));
      store(y + half + i, wasm_f32x4_add(wasm_f32x4_mul(b, c), wasm_f32x4_mul(a, s)));
    }
  }
  for (; i < half; i++) {
    int first = r->interleaved ? 2 * i : i, second = r->interleaved ? 2 * i + 1 : half + i;
    float a = x[first] * scale, b = x[second] * scale;
    y[first] = a * cos[i] - b * sin[i];
    y[second] = b * cos[i] + a * sin[i];
  }
  for (i = r->rotary; i < dim; i++) y[i] = x[i] * scale;
}

INLINE float largest(const float *x, int count) {
  vec most = f_splat(0.f);
  for (int i = 0; i < count; i += 4) most = wasm_f32x4_pmax(most, wasm_f32x4_abs(load(x + i)));
  return f_top(most);
}

INLINE float factor_of(float most, float top) { return most > 1e-20f ? top / most : 0.f; }
INLINE float scale_of(float most, float top) { return most > 1e-20f ? most / top : 0.f; }

INLINE Cache span_of(const Cache *c, int span) {
  uint32_t offset = (uint32_t)span * (uint32_t)c->span_bytes;
  Cache at = *c;
  at.keys += offset / sizeof(int16_t), at.values += offset / sizeof(int16_t);
  at.key_scale += offset / sizeof(float), at.value_scale += offset / sizeof(float);
  return at;
}

void store_kv(const Cache *c, const Rotary *rotary, Rows keys, Rows values, int position, int first, int last) {
  int dim = c->head_dim;
  float turned[MAX_HEAD];
  for (int r = first; r < last; r++) {
    int at = (position + r) % SPAN;
    Cache span = span_of(c, (position + r) / SPAN);
    for (int h = 0; h < c->kv_heads; h++) {
      rotate(keys.at + r * keys.row_floats + h * dim, turned, dim, rotary, position + r, 1.f);
      float most = largest(turned, dim), factor = factor_of(most, KEY_TOP);
      span.key_scale[h * SPAN + at] = scale_of(most, KEY_TOP);
      int16_t *key = span.keys + (h * SPAN + (at & ~7)) * dim + (at & 7) * 2;
      for (int d = 0; d < dim; d += 4) {
        vec q = rounded(load(turned + d), f_splat(factor));
        q = wasm_i16x8_narrow_i32x4(q, q);
        wasm_v128_store32_lane(key + d * PANEL, q, 0);
        wasm_v128_store32_lane(key + (d + 2) * PANEL, q, 1);
      }
      const float *value = values.at + r * values.row_floats + h * dim;
      most = largest(value, dim), factor = factor_of(most, VALUE_TOP);
      span.value_scale[h * SPAN + at] = scale_of(most, VALUE_TOP);
      for (int d = 0; d < dim; d += 4) {
        int row = (h * (dim / PANEL) + d / PANEL) * SPAN;
        int16_t *to = span.values + (row + (at & ~1)) * PANEL + (d & 7) * 2 + (at & 1);
        vec q = rounded(load(value + d), f_splat(factor));
        to[0] = (int16_t)wasm_i32x4_extract_lane(q, 0);
        to[2] = (int16_t)wasm_i32x4_extract_lane(q, 1);
        to[4] = (int16_t)wasm_i32x4_extract_lane(q, 2);
        to[6] = (int16_t)wasm_i32x4_extract_lane(q, 3);
      }
    }
  }
}

int attention_tiles(const Cache *c, const Attention *a, int tokens) {
  int rows = a->heads / c->kv_heads * tokens;
  return c->kv_heads * ((rows + TILE - 1) / TILE);
}

/* The first position that a query at `position` sees. */
INLINE int earliest(const Attention *a, int position) {
  return a->window > 0 && position - a->window + 1 > 0 ? position - a->window + 1 : 0;
}

int attention_spans(const Attention *a, int tokens, int position) {
  return (position + tokens - 1) / SPAN - earliest(a, position) / SPAN + 1;
}

/* Up to four query rows of one kv head, and what their softmax has come to. Row m is query head `first + m` of the
 * group, counted on through the tokens. */
typedef struct {
  int kv_head, first, rows, group, position;
  int single;           /* the step has one token: what is read of the cache is read once, so it is asked for in good time */
  float *scores;        /* [TILE][SPAN] */
  int16_t *packed;      /* probabilities, [SPAN / 2][rows][2] */
  float *packed_scale;  /* [SPAN / BLOCK][TILE] */
  int16_t *query;       /* [head_dim / 2][rows][2] */
  float *part;          /* a span's output, [TILE][head_dim] */
  float query_scale[TILE], most[TILE], total[TILE];
} Tile;

INLINE int token_of(const Tile *t, int m) { return (t->first + m) / t->group; }
INLINE int head_of(const Tile *t, int m) { return t->kv_head * t->group + (t->first + m) % t->group; }

/* Tile `number` of attention_tiles, its queries rotated and rounded. */
static Tile open_tile(const Cache *c, const Rotary *rotary, const Attention *a, Rows queries, int tokens, int position,
                      int number, uint8_t *scratch) {
  int group = a->heads / c->kv_heads, all = group * tokens, tiles = (all + TILE - 1) / TILE, dim = c->head_dim;
  Tile t = {.kv_head = number / tiles, .first = number % tiles * TILE, .group = group, .position = position,
            .single = tokens == 1};
  t.rows = all - t.first < TILE ? all - t.first : TILE;
  t.scores = (float *)scratch;
  t.packed_scale = t.scores + TILE * SPAN;
  t.part = t.packed_scale + TILE * (SPAN / BLOCK);
  t.packed = (int16_t *)(t.part + TILE * dim);
  t.query = t.packed + TILE * SPAN;
  float turned[MAX_HEAD], top = (float)(INT32_MAX / KEY_TOP / dim < 32767 ? INT32_MAX / KEY_TOP / dim : 32767);
  for (int m = 0; m < t.rows; m++) {
    int token = token_of(&t, m);
    const float *query = queries.at + token * queries.row_floats + head_of(&t, m) * dim;
    rotate(query, turned, dim, rotary, position + token, a->scale);
    float most = largest(turned, dim), factor = factor_of(most, top);
    t.query_scale[m] = scale_of(most, top);
    for (int d = 0; d < dim; d += 4) {
      vec q = rounded(load(turned + d), f_splat(factor));
      q = wasm_i16x8_narrow_i32x4(q, q);
      wasm_v128_store32_lane(t.query + d * t.rows + m * 2, q, 0);
      wasm_v128_store32_lane(t.query + (d + 2) * t.rows + m * 2, q, 1);
    }
    t.most[m] = NEVER, t.total[m] = 0.f;
  }
  return t;
}

/* Scores of the rows with positions [from, to) of a span `c`, both multiples of 8, at scores[m][position - from]. */
INLINE void score(const Cache *c, const Tile *t, int from, int to, const int rows) {
  int dim = c->head_dim;
  const float *scale = c->key_scale + t->kv_head * SPAN;
  for (int at = from; at < to; at += PANEL) {
    if (t->single && at + 2 * PANEL <= to) touch(c->keys + (t->kv_head * SPAN + at + PANEL) * dim, PANEL * dim * 2);
    vec d[TILE][2], s0 = load(scale + at), s1 = load(scale + at + 4);
    UNROLL for (int m = 0; m < rows; m++) d[m][0] = d[m][1] = wasm_i32x4_splat(0);
    dot_pairs(c->keys + (t->kv_head * SPAN + at) * dim, t->query, dim / 2, rows, rows, d);
    UNROLL for (int m = 0; m < rows; m++) {
      vec e = f_splat(t->query_scale[m]);
      store(t->scores + m * SPAN + at - from, wasm_f32x4_mul(wasm_f32x4_convert_i32x4(d[m][0]), wasm_f32x4_mul(s0, e)));
      store(t->scores + m * SPAN + at - from + 4, wasm_f32x4_mul(wasm_f32x4_convert_i32x4(d[m][1]), wasm_f32x4_mul(s1, e)));
    }
  }
}

/* part[m] = the values of positions [from, to) of a span `c`, multiples of BLOCK, weighted by the packed probabilities. */
INLINE void weigh(const Cache *c, const Tile *t, int from, int to, const int rows) {
  int dim = c->head_dim, blocks = (to - from) / BLOCK;
  for (int dims = 0; dims < dim; dims += PANEL) {
    const int16_t *v = c->values + ((t->kv_head * (dim / PANEL) + dims / PANEL) * SPAN + from) * PANEL;
    vec x[TILE][2];
    UNROLL for (int m = 0; m < rows; m++) x[m][0] = x[m][1] = f_splat(0.f);
    int more = dims + PANEL < dim; /* behind this panel lies another, which may be asked for too */
    for (int b = 0; b < blocks; b++) {
      if (t->single && b % 2 == 0 && (more || b + 4 <= blocks)) touch(v + (b + 2) * BLOCK * PANEL, 4 * BLOCK * PANEL);
      vec d[TILE][2];
      UNROLL for (int m = 0; m < rows; m++) d[m][0] = d[m][1] = wasm_i32x4_splat(0);
      dot_pairs(v + b * BLOCK * PANEL, t->packed + b * BLOCK * rows, BLOCK / 2, rows, rows, d);
      UNROLL for (int m = 0; m < rows; m++) {
        vec e = splat32(t->packed_scale + b * TILE + m);
        x[m][0] = f_madd(wasm_f32x4_convert_i32x4(d[m][0]), e, x[m][0]);
        x[m][1] = f_madd(wasm_f32x4_convert_i32x4(d[m][1]), e, x[m][1]);
      }
    }
    UNROLL for (int m = 0; m < rows; m++) {
      store(t->part + m * dim + dims, x[m][0]);
      store(t->part + m * dim + dims + 4, x[m][1]);
    }
  }
}

/* Row m's scores [0, width), of which it sees [low, high), to rounded probabilities times the values' scales. The
 * probabilities are not yet divided by their sum, which is returned with the largest score in `most`. */
static float probabilities(const Tile *t, int m, int width, int low, int high, const float *value_scale, float softcap,
                           float *most) {
  float *x = t->scores + m * SPAN;
  if (softcap > 0.f)
    for (int i = 0; i < width; i += 4)
      store(x + i, wasm_f32x4_mul(f_tanh(wasm_f32x4_mul(load(x + i), f_splat(1.f / softcap))), f_splat(softcap)));
  for (int i = 0; i < low; i++) x[i] = NEVER;
  for (int i = high; i < width; i++) x[i] = NEVER;
  vec top = f_splat(NEVER), total = f_splat(0.f);
  for (int i = 0; i < width; i += 4) top = wasm_f32x4_pmax(top, load(x + i));
  *most = f_top(top);
  top = f_splat(*most);
  for (int b = 0; b < width; b += BLOCK) {
    vec p[8], block = f_splat(0.f);
    UNROLL for (int i = 0; i < 8; i++) {
      vec score = load(x + b + i * 4);
      vec e = wasm_v128_and(f_exp(wasm_f32x4_sub(score, top)), wasm_f32x4_gt(score, f_splat(NEVER)));
      total = wasm_f32x4_add(total, e);
      p[i] = wasm_f32x4_mul(e, load(value_scale + b + i * 4));
      block = wasm_f32x4_pmax(block, p[i]);
    }
    float largest = f_top(block);
    t->packed_scale[b / BLOCK * TILE + m] = scale_of(largest, PROBABILITY_TOP);
    vec factor = f_splat(factor_of(largest, PROBABILITY_TOP));
    int16_t *to = t->packed + b * t->rows + m * 2;
    UNROLL for (int i = 0; i < 8; i += 2) {
      vec q = wasm_i16x8_narrow_i32x4(rounded(p[i], factor), rounded(p[i + 1], factor));
      wasm_v128_store32_lane(to + i * 4 * t->rows, q, 0);
      wasm_v128_store32_lane(to + (i * 4 + 2) * t->rows, q, 1);
      wasm_v128_store32_lane(to + (i * 4 + 4) * t->rows, q, 2);
      wasm_v128_store32_lane(to + (i * 4 + 6) * t->rows, q, 3);
    }
  }
  return f_sum(total);
}

/* The rows' softmax over span number `span` alone: part, most and total. */
static void run_span(const Cache *cache, const Attention *a, Tile *t, int span) {
  int first = t->position + token_of(t, 0), last = t->position + token_of(t, t->rows - 1);
  int start = span * SPAN, from = (earliest(a, first) & ~(BLOCK - 1)) - start, to = SPAN;
  if (from < 0) from = 0;
  if (to > last + 1 - start) to = (last - start + BLOCK) & ~(BLOCK - 1);
  Cache c = span_of(cache, span);
#define ROWS(kernel) \
  switch (t->rows) { \
    case 1: kernel(&c, t, from, to, 1); break; \
    case 2: kernel(&c, t, from, to, 2); break; \
    case 3: kernel(&c, t, from, to, 3); break; \
    default: kernel(&c, t, from, to, 4); \
  }
  ROWS(score)
  for (int m = 0; m < t->rows; m++) {
    int at = t->position + token_of(t, m), begin = earliest(a, at) - start - from, end = at + 1 - start - from;
    begin = begin < 0 ? 0 : begin > to - from ? to - from : begin, end = end < 0 ? 0 : end > to - from ? to - from : end;
    t->total[m] = probabilities(t, m, to - from, begin, end, c.value_scale + t->kv_head * SPAN + from, a->softcap,
                                t->most + m);
  }
  ROWS(weigh)
#undef ROWS
}

/* What one row's softmax has come to after some spans: its largest score and, relative to that, the sum of exponents. */
typedef struct {
  float most, total;
} Softmax;

INLINE float exponent(float x) { return wasm_f32x4_extract_lane(f_exp(f_splat(x)), 0); }

/* Adds one span's part to the row's output y. The first span is added to nothing. */
static Softmax add_span(Softmax sum, float most, float total, const float *part, float *y, int dim) {
  if (total == 0.f) return sum; /* the row sees nothing of this span */
  int begins = sum.total == 0.f;
  float top = begins || most > sum.most ? most : sum.most;
  float old = begins ? 0.f : exponent(sum.most - top), add = exponent(most - top);
  for (int d = 0; d < dim; d += 4) {
    vec before = begins ? f_splat(0.f) : wasm_f32x4_mul(load(y + d), f_splat(old));
    store(y + d, wasm_f32x4_add(before, wasm_f32x4_mul(load(part + d), f_splat(add))));
  }
  return (Softmax){top, sum.total * old + total * add};
}

INLINE void divide(float *y, int dim, float total) {
  for (int d = 0; d < dim; d += 4) store(y + d, wasm_f32x4_mul(load(y + d), f_splat(1.f / total)));
}

void attend(const Cache *c, const Rotary *rotary, const Attention *a, Rows queries, Rows out, int tokens, int position,
            int tile, uint8_t *scratch) {
  Tile t = open_tile(c, rotary, a, queries, tokens, position, tile, scratch);
  Softmax sums[TILE] = {{0.f, 0.f}, {0.f, 0.f}, {0.f, 0.f}, {0.f, 0.f}};
  int dim = c->head_dim, first = position + token_of(&t, 0), last = position + token_of(&t, t.rows - 1);
  for (int span = earliest(a, first) / SPAN; span <= last / SPAN; span++) {
    run_span(c, a, &t, span);
    for (int m = 0; m < t.rows; m++) {
      float *y = out.at + token_of(&t, m) * out.row_floats + head_of(&t, m) * dim;
      sums[m] = add_span(sums[m], t.most[m], t.total[m], t.part + m * dim, y, dim);
    }
  }
  for (int m = 0; m < t.rows; m++)
    divide(out.at + token_of(&t, m) * out.row_floats + head_of(&t, m) * dim, dim, sums[m].total);
}

void attend_span(const Cache *c, const Rotary *rotary, const Attention *a, Rows queries, float *parts, int position,
                 int task, uint8_t *scratch) {
  int spans = attention_spans(a, 1, position), number = task % spans, dim = c->head_dim;
  Tile t = open_tile(c, rotary, a, queries, 1, position, task / spans, scratch);
  run_span(c, a, &t, earliest(a, position) / SPAN + number);
  for (int m = 0; m < t.rows; m++) {
    float *part = parts + (head_of(&t, m) * spans + number) * (dim + 4);
    for (int d = 0; d < dim; d += 4) store(part + d, load(t.part + m * dim + d));
    part[dim] = t.most[m], part[dim + 1] = t.total[m];
  }
}

void join(const Cache *c, const Attention *a, const float *parts, Rows out, int position, int first, int last) {
  int spans = attention_spans(a, 1, position), dim = c->head_dim;
  for (int head = first; head < last; head++) {
    Softmax sum = {0.f, 0.f};
    float *y = out.at + head * dim;
    for (int span = 0; span < spans; span++) {
      const float *part = parts + (head * spans + span) * (dim + 4);
      sum = add_span(sum, part[dim], part[dim + 1], part, y, dim);
    }
    divide(y, dim, sum.total);
  }
}
