/* Matrix products of the linear layers and the lm_head; the layouts are described in linear.h. */
#include "linear.h"

/* What is added to scale * value: nothing (with HALVES too, where 16 inputs have a scale), the stored offset, or -8 *
 * scale. */
enum { NOTHING, OFFSET, MIDDLE, HALVES };

INLINE int halves_of(const int kind) { return kind == HALVES ? 2 : 1; }

/* x + one block's contribution to four outputs of one token: d = sum of value * activation, s and z the weights' scales
 * and offsets, e and f the activations' scale and sum. */
INLINE vec scaled(vec x, vec d, vec s, vec z, vec e, vec f, const int kind) {
  if (kind == OFFSET || kind == MIDDLE) x = f_madd(z, f, x);
  return f_madd(wasm_f32x4_convert_i32x4(d), wasm_f32x4_mul(s, e), x);
}

INLINE vec offset(const float *z, vec s, const int kind) {
  return kind == OFFSET ? load(z) : wasm_f32x4_mul(s, f_splat(-8.f));
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

/* One token x one panel, straight from the packed weights: [8 outputs]. */
INLINE void one_token(const int bits, const int kind, const uint8_t *w, const float *s, const float *z, Activations act,
                      int blocks, vec out[2]) {
  const int16_t *a = act.values;
  const int halves = halves_of(kind);
  vec x0 = f_splat(0.f), x1 = x0;
  for (int b = 0; b < blocks * halves; b++) {
    vec d0 = wasm_i32x4_splat(0), d1 = d0;
    ROLLED for (int g = 0; g < 8 / halves; g++) {
      vec even = splat32(a), odd = splat32(a + 2);
      if (bits == 4) {
        vec q = load(w);
        d0 = dot(even, nibble(q, 0), d0);
        d1 = dot(even, nibble(q, 1), d1);
        d0 = dot(odd, nibble(q, 2), d0);
        d1 = dot(odd, nibble(q, 3), d1);
      } else {
        d0 = dot(even, wasm_i16x8_load8x8(w), d0);
        d1 = dot(even, wasm_i16x8_load8x8(w + 8), d1);
        d0 = dot(odd, wasm_i16x8_load8x8(w + 16), d0);
        d1 = dot(odd, wasm_i16x8_load8x8(w + 24), d1);
      }
      w += bits * 4, a += 4;
    }
    vec e = splat32(act.scale + b / halves), f = splat32(act.sum + b / halves), s0 = load(s), s1 = load(s + 4);
    x0 = scaled(x0, d0, s0, offset(z, s0, kind), e, f, kind);
    x1 = scaled(x1, d1, s1, offset(z + 4, s1, kind), e, f, kind);
    s += PANEL, z += PANEL;
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
    vec s0 = load(s), s1 = load(s + 4), z0 = offset(z, s0, kind), z1 = offset(z + 4, s1, kind);
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

INLINE void panels(const int bits, const int kind, const uint8_t *w, const float *s, const float *z, const float *bias,
                   Activations a, float *y, int row_floats, int rows, int blocks, int first, int last, int16_t *scratch) {
  int panel_bytes = blocks * bits * BLOCK, panel_scales = blocks * PANEL * halves_of(kind);
  for (int p = first; p < last; p++) {
    const uint8_t *wp = w + p * panel_bytes;
    const float *sp = s + p * panel_scales, *zp = kind == OFFSET ? z + p * panel_scales : s;
    const float *bp = bias ? bias + p * PANEL : 0;
    vec out[TILE][2];
    if (rows == 1) {
      one_token(bits, kind, wp, sp, zp, a, blocks, out[0]);
      keep(y + p * PANEL, out[0][0], out[0][1], bp);
      continue;
    }
    unpack(bits, wp, scratch, blocks);
    for (int t = 0; t * TILE < rows; t++) {
      int at = t * TILE * blocks;
      four_tokens(kind, scratch, sp, zp, a.values + at * BLOCK, a.scale + at, a.sum + at, blocks, out);
      UNROLL for (int m = 0; m < TILE; m++)
        keep(y + (t * TILE + m) * row_floats + p * PANEL, out[m][0], out[m][1], bp);
    }
  }
}

void linear(int bits, int halves, const uint8_t *w, const float *s, const float *z, const float *bias, Activations a,
            float *y, int row_floats, int rows, int blocks, int first, int last, uint8_t *scratch) {
#define RUN(bits, kind) \
  panels(bits, kind, w, s, z, bias, a, y, row_floats, rows, blocks, first, last, (int16_t *)scratch)
  if (halves == 2) RUN(8, HALVES);
  else if (bits == 8 && z) RUN(8, OFFSET);
  else if (bits == 8) RUN(8, NOTHING);
  else if (z) RUN(4, OFFSET);
  else RUN(4, MIDDLE);
#undef RUN
}
