/* Matrix products of the linear layers and the lm_head; the layouts are described in linear.h. */
#include "linear.h"

/* What is added to scale * value: nothing (with HALVES too, where 16 inputs have a scale), the stored offset, scale *
 * the stored zero point, or -8 * scale. */
enum { NOTHING, OFFSET, POINT, MIDDLE, HALVES };

INLINE int halves_of(const int kind) { return kind == HALVES ? 2 : 1; }

/* x + one block's contribution to four outputs of one token: d = sum of value * activation, s and z the weights' scales
 * and offsets, e and f the activations' scale and sum. */
INLINE vec scaled(vec x, vec d, vec s, vec z, vec e, vec f, const int kind) {
  if (kind != NOTHING && kind != HALVES) x = f_madd(z, f, x);
  return f_madd(wasm_f32x4_convert_i32x4(d), wasm_f32x4_mul(s, e), x);
}

/* Stored scales, or what is stored in the place of offsets; number `half` of a panel's two vectors of four outputs. */
INLINE vec stored(const uint8_t *at, const int half, const int bytes) {
  return bytes == 2 ? load_halves(at + half * 8) : load(at + half * 16);
}

INLINE vec offset(const uint8_t *z, const int half, const int bytes, vec s, const int kind) {
  if (kind == OFFSET) return stored(z, half, bytes);
  return wasm_f32x4_mul(s, kind == POINT ? stored(z, half, bytes) : f_splat(-8.f));
}

/* A 16-bit lane of packed weights holds inputs kk and kk+1 of outputs i and i+4. Masking and shifting the lane gives
 * inputs 0, 2 (even) and 1, 3 (odd) as int16 without widening: hence the order of the activations. */
INLINE vec nibble(vec q, const int number) {
  q = number ? wasm_u16x8_shr(q, number * 4) : q;
  return number == 3 ? q : wasm_v128_and(q, wasm_i16x8_splat(15));
}

INLINE vec dot(vec activations, vec weights, vec sum) {
  return wasm_i32x4_add(wasm_i32x4_dot_i16x8(activations, weights), sum);
}

/* How many scales' worth of weights are asked for in one go, as far ahead: twelve lines of them, for a core has ten to
 * sixteen on their way at most. Less leaves it idle, more keeps arithmetic waiting. */
INLINE int strip_of(const int bits, const int kind) { return 24 * halves_of(kind) / bits; }

/* One token x one panel, straight from the packed weights: [8 outputs]. There are `left` scales' worth from here on. */
INLINE void one_token(const int bits, const int kind, const int bytes, const uint8_t *w, const uint8_t *s,
                      const uint8_t *z, Activations act, int blocks, int left, vec out[2]) {
  const int16_t *a = act.values;
  const int halves = halves_of(kind), strip = strip_of(bits, kind);
  vec x0 = f_splat(0.f), x1 = x0;
  for (int b = 0; b < blocks * halves; b++) {
    if (b % strip == 0 && b + 2 * strip <= left) {
      touch(w + strip * bits * BLOCK / halves, strip * bits * BLOCK / halves);
      touch(s + strip * PANEL * bytes, strip * PANEL * bytes);
      if (kind == OFFSET || kind == POINT) touch(z + strip * PANEL * bytes, strip * PANEL * bytes);
    }
    vec d0 = wasm_i32x4_splat(0), d1 = d0;
    ROLLED for (int g = 0; g < 8 / halves; g++) {
      vec even = splat32(a), odd = splat32(a + 2);
      if (bits == 4) {
        vec q = load(w), high = wasm_u16x8_shr(q, 8);
        d0 = dot(even, wasm_v128_and(q, wasm_i16x8_splat(15)), d0);
        d1 = dot(even, wasm_v128_and(q, wasm_i16x8_splat(255)), d1);
        d0 = dot(odd, wasm_v128_and(high, wasm_i16x8_splat(15)), d0);
        d1 = dot(odd, high, d1);
      } else {
        d0 = dot(even, wasm_i16x8_load8x8(w), d0);
        d1 = dot(even, wasm_i16x8_load8x8(w + 8), d1);
        d0 = dot(odd, wasm_i16x8_load8x8(w + 16), d0);
        d1 = dot(odd, wasm_i16x8_load8x8(w + 24), d1);
      }
      w += bits * 4, a += 4;
    }
    /* d1 has both nibbles of a byte so far, output i and 16 times output i+4: that takes two instructions less a group,
     * of fourteen, than cutting the upper one out. It stays below 32 * 32767 * 255 < 2^31. */
    if (bits == 4) d1 = wasm_i32x4_shr(wasm_i32x4_sub(d1, d0), 4);
    vec e = splat32(act.scale + b / halves), f = splat32(act.sum + b / halves);
    vec s0 = stored(s, 0, bytes), s1 = stored(s, 1, bytes);
    x0 = scaled(x0, d0, s0, offset(z, 0, bytes, s0, kind), e, f, kind);
    x1 = scaled(x1, d1, s1, offset(z, 1, bytes, s1, kind), e, f, kind);
    s += PANEL * bytes, z += PANEL * bytes;
  }
  out[0] = x0, out[1] = x1;
}

/* One panel's weights as int16: [block][16 pairs][8 outputs][2]. */
INLINE void unpack(const int bits, const uint8_t *w, int16_t *u, int blocks) {
  for (int i = 0; i < blocks * 8; i++, w += bits * 4, u += 32) {
    UNROLL for (int part = 0; part < 4; part++)
      store(u + part * 8, bits == 4 ? nibble(load(w), part) : wasm_i16x8_load8x8(w + part * 8));
  }
}

/* One panel's scales and offsets as float32: [block][8] each. */
INLINE void widen(const int kind, const int bytes, const uint8_t *s, const uint8_t *z, float *scale, float *add,
                  int blocks) {
  for (int b = 0; b < blocks; b++, s += PANEL * bytes, z += PANEL * bytes) {
    UNROLL for (int half = 0; half < 2; half++, scale += 4, add += 4) {
      vec four = stored(s, half, bytes);
      store(scale, four);
      if (kind != NOTHING) store(add, offset(z, half, bytes, four, kind));
    }
  }
}

/* One tile of four tokens x one unpacked panel. */
INLINE void four_tokens(const int kind, const int16_t *u, const float *s, const float *z, const int16_t *a,
                        const float *scale, const float *sum, int blocks, vec out[TILE][2]) {
  vec x[TILE][2];
  const int halves = halves_of(kind);
  UNROLL for (int m = 0; m < TILE; m++) x[m][0] = x[m][1] = f_splat(0.f);
  for (int b = 0; b < blocks * halves; b++) {
    vec d[TILE][2];
    UNROLL for (int m = 0; m < TILE; m++) d[m][0] = d[m][1] = wasm_i32x4_splat(0);
    dot_pairs(u, a, BLOCK / 2 / halves, TILE, TILE, d);
    vec s0 = load(s), s1 = load(s + 4), z0 = load(z), z1 = load(z + 4);
    UNROLL for (int m = 0; m < TILE; m++) {
      vec e = splat32(scale + m), f = splat32(sum + m);
      x[m][0] = scaled(x[m][0], d[m][0], s0, z0, e, f, kind);
      x[m][1] = scaled(x[m][1], d[m][1], s1, z1, e, f, kind);
    }
    u += BLOCK * PANEL / halves, a += BLOCK * TILE / halves, s += PANEL, z += PANEL;
    if (kind == HALVES && !(b & 1)) continue; /* activations have one scale for both halves */
    scale += TILE, sum += TILE;
  }
  UNROLL for (int m = 0; m < TILE; m++) out[m][0] = x[m][0], out[m][1] = x[m][1];
}

INLINE void keep(float *y, vec low, vec high, const float *bias) {
  if (bias) low = wasm_f32x4_add(low, load(bias)), high = wasm_f32x4_add(high, load(bias + 4));
  store(y, low);
  store(y + 4, high);
}

/* Panels [first, last) for one token, straight from the packed weights. */
INLINE void decode(const int bits, const int kind, const int bytes, const Weights *w, Activations a, float *y, int first,
                   int last) {
  int values = w->blocks * bits * BLOCK, scales = w->blocks * PANEL * bytes * halves_of(kind);
  for (int p = first; p < last; p++) {
    const uint8_t *s = w->scale + p * scales, *z = kind == OFFSET || kind == POINT ? w->offset + p * scales : s;
    vec out[2];
    int left = (last - p) * w->blocks * halves_of(kind);
    one_token(bits, kind, bytes, w->values + p * values, s, z, a, w->blocks, left, out);
    keep(y + p * PANEL, out[0], out[1], w->bias ? w->bias + p * PANEL : 0);
  }
}

/* One unpacked panel for many tokens. */
INLINE void tiles(const int kind, const int16_t *u, const float *s, const float *z, const float *bias, Activations a,
                  float *y, int row_floats, int rows, int blocks) {
  for (int t = 0; t * TILE < rows; t++) {
    int at = t * TILE * blocks;
    vec out[TILE][2];
    four_tokens(kind, u, s, z, a.values + at * BLOCK, a.scale + at, a.sum + at, blocks, out);
    UNROLL for (int m = 0; m < TILE; m++) keep(y + (t * TILE + m) * row_floats, out[m][0], out[m][1], bias);
  }
}

INLINE int kind_of(const Weights *w) {
  if (w->halves == 2) return HALVES;
  if (!w->offset) return w->bits == 4 ? MIDDLE : NOTHING;
  return w->stored == HALF_POINTS ? POINT : OFFSET;
}

static void prefill(const Weights *w, Activations a, float *y, int row_floats, int rows, int first, int last,
                    uint8_t *scratch) {
  const int kind = kind_of(w), bytes = w->stored == FLOATS ? 4 : 2, blocks = w->blocks;
  int values = blocks * w->bits * BLOCK, scales = blocks * PANEL * bytes * w->halves;
  int16_t *unpacked = (int16_t *)scratch;
  float *scale = (float *)(unpacked + blocks * BLOCK * PANEL), *add = scale + blocks * PANEL;
  for (int p = first; p < last; p++) {
    const uint8_t *s = w->scale + p * scales, *z = w->offset + p * scales;
    const float *bias = w->bias ? w->bias + p * PANEL : 0;
    float *to = y + p * PANEL;
    if (w->bits == 4) unpack(4, w->values + p * values, unpacked, blocks);
    else unpack(8, w->values + p * values, unpacked, blocks);
    if (kind == HALVES) {
      tiles(HALVES, unpacked, (const float *)s, (const float *)s, bias, a, to, row_floats, rows, blocks);
      continue;
    }
    if (bytes == 2) widen(kind, 2, s, z, scale, add, blocks);
    else widen(kind, 4, s, z, scale, add, blocks);
    if (kind == NOTHING) tiles(NOTHING, unpacked, scale, scale, bias, a, to, row_floats, rows, blocks);
    else tiles(OFFSET, unpacked, scale, add, bias, a, to, row_floats, rows, blocks);
  }
}

void linear(const Weights *w, Activations a, float *y, int row_floats, int rows, int first, int last, uint8_t *scratch) {
  if (rows > 1) return prefill(w, a, y, row_floats, rows, first, last, scratch);
#define ONE(bits, kind) \
  return w->stored == FLOATS ? decode(bits, kind, 4, w, a, y, first, last) : decode(bits, kind, 2, w, a, y, first, last)
  switch (kind_of(w)) {
    case HALVES: return decode(8, HALVES, 4, w, a, y, first, last);
    case NOTHING: ONE(8, NOTHING);
    case MIDDLE: ONE(4, MIDDLE);
    case POINT: return w->bits == 4 ? decode(4, POINT, 2, w, a, y, first, last) : decode(8, POINT, 2, w, a, y, first, last);
    default:
      if (w->bits == 8) return decode(8, OFFSET, 4, w, a, y, first, last);
      ONE(4, OFFSET);
  }
#undef ONE
}
