/* Rotary embedding, the KV cache and attention; described in attention.h. */
#include "attention.h"

#include "linear.h"
#include "quantize.h"

enum { MAX_HEAD = 512 };

INLINE int head_blocks(const Cache *c) { return (c->head_dim + BLOCK - 1) / BLOCK; }

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

/* The largest power of two that divides a head: what is mixed together. */
INLINE int mixed(int dim) { return dim & -dim; }

/* Walsh-Hadamard transform of each run of `size` values, times size^-1/2: orthogonal and its own inverse. Keys and
 * queries mixed the same way keep their products, while an outlier that would take a whole block's int8 range for
 * itself is spread over the run. Values are mixed too, and the output is mixed back. */
static void mix(float *x, int dim, int size) {
  for (int half = 1; half < size; half *= 2) {
    for (int start = 0; start < dim; start += 2 * half) {
      int i = start;
      for (; i + 4 <= start + half; i += 4) {
        vec a = load(x + i), b = load(x + i + half);
        store(x + i, wasm_f32x4_add(a, b));
        store(x + i + half, wasm_f32x4_sub(a, b));
      }
      for (; i < start + half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
  vec factor = f_splat(1.f / __builtin_sqrtf((float)size));
  for (int i = 0; i < dim; i += 4) store(x + i, wasm_f32x4_mul(load(x + i), factor));
}

/* 32 integers into their places of one panel's block, as output `lane`; the order of linear.h. */
INLINE void place(int8_t *block, int lane, const vec q[8]) {
  UNROLL for (int g = 0; g < 8; g++) {
    int8_t *out = block + g * 32 + lane * 2;
    out[0] = (int8_t)wasm_i32x4_extract_lane(q[g], 0);
    out[1] = (int8_t)wasm_i32x4_extract_lane(q[g], 2);
    out[16] = (int8_t)wasm_i32x4_extract_lane(q[g], 1);
    out[17] = (int8_t)wasm_i32x4_extract_lane(q[g], 3);
  }
}

void store_kv(const Cache *c, const Rotary *rotary, Rows keys, Rows values, int position, int first, int last) {
  int blocks = head_blocks(c), size = mixed(c->head_dim), sum;
  float turned[MAX_HEAD];
  for (int r = first; r < last; r++) {
    int at = position + r;
    for (int h = 0; h < c->kv_heads; h++) {
      const float *key = keys.at + r * keys.row_floats + h * c->head_dim;
      const float *value = values.at + r * values.row_floats + h * c->head_dim;
      vec q[8];
      rotate(key, turned, c->head_dim, rotary, at, 1.f);
      mix(turned, c->head_dim, size);
      uint32_t panel = (uint32_t)((h * c->context + at) >> 3) * (uint32_t)blocks;
      for (int b = 0; b < blocks; b++) {
        float s = quantize_block(turned + b * BLOCK, c->head_dim - b * BLOCK, 127.f, q, &sum);
        place(c->keys + (panel + b) * 256, at & 7, q);
        c->key_scale[(panel + b) * PANEL + (at & 7)] = s;
      }
      for (int d = 0; d < c->head_dim; d++) turned[d] = value[d];
      mix(turned, c->head_dim, size);
      float most = 0.f;
      for (int d = 0; d < c->head_dim; d++) {
        float each = __builtin_fabsf(turned[d]);
        if (each > most) most = each;
      }
      float factor = most > 1e-20f ? 127.f / most : 0.f;
      c->value_scale[h * c->context + at] = most > 1e-20f ? most * (1.f / 127.f) : 0.f;
      int g = (at >> 2) & 7, kk = at & 3, inside = g * 32 + (kk & 1) * 16 + (kk >> 1);
      for (int d = 0; d < c->head_dim; d++) {
        uint32_t row = (uint32_t)(h * (c->head_dim / PANEL) + d / PANEL) * (uint32_t)(c->context / BLOCK);
        c->values[(row + at / BLOCK) * 256 + inside + (d & 7) * 2] = (int8_t)__builtin_rintf(turned[d] * factor);
      }
    }
  }
}

int attention_tiles(const Cache *c, const Attention *a, int tokens) {
  int rows = a->heads / c->kv_heads * tokens;
  return c->kv_heads * ((rows + TILE - 1) / TILE);
}

/* Scores of one row to probabilities (not yet divided by their sum, which is returned), times the values' scales. */
static float probabilities(float *x, int span, int from, int to, const float *value_scale, float softcap) {
  vec most = f_splat(-1e30f), total = f_splat(0.f);
  for (int i = 0; i < from; i++) x[i] = -1e30f;
  for (int i = to; i < span; i++) x[i] = -1e30f;
  for (int i = 0; i < span; i += 4) {
    vec v = load(x + i);
    if (softcap > 0.f) {
      v = wasm_f32x4_mul(f_tanh(wasm_f32x4_mul(v, f_splat(1.f / softcap))), f_splat(softcap));
      store(x + i, v);
    }
    most = wasm_f32x4_pmax(most, v);
  }
  if (softcap > 0.f) { /* the cap has lifted what was masked */
    for (int i = 0; i < from; i++) x[i] = -1e30f;
    for (int i = to; i < span; i++) x[i] = -1e30f;
  }
  most = f_splat(f_top(most));
  for (int i = 0; i < span; i += 4) {
    vec e = f_exp(wasm_f32x4_sub(load(x + i), most));
    total = wasm_f32x4_add(total, e);
    store(x + i, wasm_f32x4_mul(e, load(value_scale + i)));
  }
  for (int i = 0; i < from; i++) x[i] = 0.f;
  for (int i = to; i < span; i++) x[i] = 0.f;
  return f_sum(total);
}

INLINE void attend_rows(const Cache *c, const Rotary *rotary, const Attention *a, Rows queries, Rows out, int position,
                        int kv_head, int first, const int rows, uint8_t *scratch) {
  int group = a->heads / c->kv_heads, dim = c->head_dim, blocks = head_blocks(c), width = blocks * BLOCK;
  int last_position = position + (first + rows - 1) / group, earliest = position + first / group;
  int low = a->window > 0 && earliest - a->window + 1 > 0 ? (earliest - a->window + 1) & ~(BLOCK - 1) : 0;
  int span = (last_position + 1 - low + BLOCK - 1) & ~(BLOCK - 1);

  float *scores = (float *)scratch;                   /* [rows][span] */
  int16_t *packed = (int16_t *)(scores + TILE * span); /* [span / 4][pair][rows][2] */
  float *scale = (float *)(packed + TILE * span), *sum = scale + TILE * (span / BLOCK);
  float *turned = sum + TILE * (span / BLOCK);        /* [rows][width] */
  int16_t *query = (int16_t *)(turned + TILE * width);
  float *query_scale = (float *)(query + TILE * width), *query_sum = query_scale + TILE * blocks;

  UNROLL for (int m = 0; m < rows; m++) {
    int token = (first + m) / group, head = kv_head * group + (first + m) % group;
    rotate(queries.at + token * queries.row_floats + head * dim, turned + m * width, dim, rotary, position + token,
           a->scale);
    mix(turned + m * width, dim, mixed(dim));
  }
  quantize((Rows){turned, width}, dim, blocks, query, query_scale, query_sum, 1, rows, rows, 0, 1);

  vec result[TILE][2];
  uint32_t panel = (uint32_t)((kv_head * c->context + low) >> 3) * (uint32_t)blocks;
  for (int p = 0; p < span / PANEL; p++, panel += blocks) {
    tile_i16(c->keys + panel * 256, c->key_scale + panel * PANEL, 0, query, query_scale, query_sum, blocks, rows, rows,
             SYMMETRIC, result);
    UNROLL for (int m = 0; m < rows; m++) {
      store(scores + m * span + p * PANEL, result[m][0]);
      store(scores + m * span + p * PANEL + 4, result[m][1]);
    }
  }

  float inverse[TILE];
  for (int m = 0; m < rows; m++) {
    int at = position + (first + m) / group, from = a->window > 0 ? at - a->window + 1 - low : 0;
    inverse[m] = 1.f / probabilities(scores + m * span, span, from > 0 ? from : 0, at + 1 - low,
                                     c->value_scale + kv_head * c->context + low, a->softcap);
  }
  quantize((Rows){scores, span}, span, span / BLOCK, packed, scale, sum, 1, rows, rows, 0, 1);

  for (int d = 0; d < dim / PANEL; d++) {
    uint32_t row = (uint32_t)(kv_head * (dim / PANEL) + d) * (uint32_t)(c->context / BLOCK) + low / BLOCK;
    tile_i16(c->values + row * 256, 0, 0, packed, scale, sum, span / BLOCK, rows, rows, NO_SCALE, result);
    UNROLL for (int m = 0; m < rows; m++) {
      int token = (first + m) / group, head = kv_head * group + (first + m) % group;
      float *y = out.at + token * out.row_floats + head * dim + d * PANEL;
      store(y, wasm_f32x4_mul(result[m][0], f_splat(inverse[m])));
      store(y + 4, wasm_f32x4_mul(result[m][1], f_splat(inverse[m])));
    }
  }
  UNROLL for (int m = 0; m < rows; m++) {
    int token = (first + m) / group, head = kv_head * group + (first + m) % group;
    mix(out.at + token * out.row_floats + head * dim, dim, mixed(dim));
  }
}

void attend(const Cache *c, const Rotary *r, const Attention *a, Rows queries, Rows out, int tokens, int position,
            int tile, uint8_t *scratch) {
  int rows = a->heads / c->kv_heads * tokens, tiles = (rows + TILE - 1) / TILE;
  int kv_head = tile / tiles, first = tile % tiles * TILE;
  switch (rows - first < TILE ? rows - first : TILE) {
    case 1: return attend_rows(c, r, a, queries, out, position, kv_head, first, 1, scratch);
    case 2: return attend_rows(c, r, a, queries, out, position, kv_head, first, 2, scratch);
    case 3: return attend_rows(c, r, a, queries, out, position, kv_head, first, 3, scratch);
    default: return attend_rows(c, r, a, queries, out, position, kv_head, first, 4, scratch);
  }
}
