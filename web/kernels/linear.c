/* Matrix products of the linear layers and the lm_head; the layouts are described in linear.h. */
#include "linear.h"

#ifdef HB_RELAXED
/* Narrow: int8 activations, relaxed SIMD. */

/* Four nibbles times four int8 into 16-bit lanes. The i16 form of the relaxed dot keeps its speed on CPUs without
 * VNNI, where the i32 form falls to half. A block's sum cannot overflow: 16 products per lane, 16 * 127 * 15 = 30480. */
INLINE vec dot4(vec activations, vec nibbles, vec sum) {
  return wasm_i16x8_add(wasm_i16x8_relaxed_dot_i8x16_i7x16(activations, nibbles), sum);
}

INLINE vec widen(vec d) { return wasm_f32x4_convert_i32x4(wasm_i32x4_extadd_pairwise_i16x8(d)); }

/* x += block's contribution, for the four outputs of one half panel and one token. */
INLINE vec narrow_scaled(vec x, vec d, vec s, vec z, vec e, vec f, const int kind) {
  if (kind == OFFSET) return f_madd(widen(d), wasm_f32x4_mul(s, e), f_madd(z, f, x));
  return f_madd(s, f_madd(widen(d), e, wasm_f32x4_mul(f, f_splat(-8.f))), x);
}

INLINE void narrow_gemv4(const uint8_t *w, const float *s, const float *z, const int8_t *a, const float *sa, const float *ca,
                  int blocks, const int kind, vec out[2]) {
  vec x0 = f_splat(0.f), x1 = x0, low = wasm_i8x16_splat(15);
  for (int b = 0; b < blocks; b++) {
    vec d[2][2];
    UNROLL for (int i = 0; i < 2; i++) d[i][0] = d[i][1] = wasm_i32x4_splat(0);
    UNROLL_TWICE for (int g = 0; g < 8; g++) {
      vec q = load(w + g * 16), t = splat32(a + g * 4);
      d[g & 1][0] = dot4(t, wasm_v128_and(q, low), d[g & 1][0]);
      d[g & 1][1] = dot4(t, wasm_v128_and(wasm_u16x8_shr(q, 4), low), d[g & 1][1]);
    }
    vec e = splat32(sa + b), f = splat32(ca + b), z0 = f, z1 = f;
    if (kind == OFFSET) z0 = load(z), z1 = load(z + 4);
    x0 = narrow_scaled(x0, wasm_i16x8_add(d[0][0], d[1][0]), load(s), z0, e, f, kind);
    x1 = narrow_scaled(x1, wasm_i16x8_add(d[0][1], d[1][1]), load(s + 4), z1, e, f, kind);
    w += 128, a += BLOCK, s += PANEL, z += PANEL;
  }
  out[0] = x0, out[1] = x1;
}

/* One panel's nibbles as bytes, per group 16 bytes of outputs 0-3, then 16 of outputs 4-7. */
static void narrow_unpack4(const uint8_t *w, uint8_t *u, int blocks) {
  vec low = wasm_i8x16_splat(15);
  for (int i = 0; i < blocks * 8; i++) {
    vec q = load(w + i * 16);
    store(u + i * 32, wasm_v128_and(q, low));
    store(u + i * 32 + 16, wasm_v128_and(wasm_u16x8_shr(q, 4), low));
  }
}

INLINE void narrow_gemm4(const uint8_t *u, const float *s, const float *z, const int8_t *a, const float *sa, const float *ca,
                  int blocks, const int kind, vec out[][2]) {
  vec x[TILE][2];
  UNROLL for (int m = 0; m < TILE; m++) x[m][0] = x[m][1] = f_splat(0.f);
  for (int b = 0; b < blocks; b++) {
    vec d[TILE][2];
    UNROLL for (int m = 0; m < TILE; m++) d[m][0] = d[m][1] = wasm_i32x4_splat(0);
    ROLLED for (int g = 0; g < 8; g++) {
      vec w0 = load(u + g * 32), w1 = load(u + g * 32 + 16);
      UNROLL for (int m = 0; m < TILE; m++) {
        vec t = splat32(a + g * 16 + m * 4);
        d[m][0] = dot4(t, w0, d[m][0]);
        d[m][1] = dot4(t, w1, d[m][1]);
      }
    }
    vec s0 = load(s), s1 = load(s + 4), z0 = s0, z1 = s1;
    if (kind == OFFSET) z0 = load(z), z1 = load(z + 4);
    UNROLL for (int m = 0; m < TILE; m++) {
      vec e = splat32(sa + m), f = splat32(ca + m);
      x[m][0] = narrow_scaled(x[m][0], d[m][0], s0, z0, e, f, kind);
      x[m][1] = narrow_scaled(x[m][1], d[m][1], s1, z1, e, f, kind);
    }
    u += 256, a += 128, s += PANEL, z += PANEL, sa += TILE, ca += TILE;
  }
  UNROLL for (int m = 0; m < TILE; m++) out[m][0] = x[m][0], out[m][1] = x[m][1];
}
#endif

/* Wide: int16 activations. */

INLINE vec dot2(vec activations, vec weights, vec sum) {
  return wasm_i32x4_add(wasm_i32x4_dot_i16x8(activations, weights), sum);
}

INLINE vec wide_scaled(vec x, vec d, vec s, vec z, vec e, vec f, const int kind) {
  d = wasm_f32x4_convert_i32x4(d);
  if (kind == OFFSET) return f_madd(d, wasm_f32x4_mul(s, e), f_madd(z, f, x));
  return f_madd(s, f_madd(d, e, wasm_f32x4_mul(f, f_splat(-8.f))), x);
}

/* A 16-bit lane of packed weights holds inputs kk and kk+1 of outputs i and i+4. Masking and shifting the lane gives
 * inputs 0, 2 (even) and 1, 3 (odd) as int16 without widening: hence the order of the int16 activations. */
INLINE void wide_gemv4(const uint8_t *w, const float *s, const float *z, const int16_t *a, const float *sa, const float *ca,
                  int blocks, const int kind, vec out[2]) {
  vec x0 = f_splat(0.f), x1 = x0, low = wasm_i16x8_splat(15);
  for (int b = 0; b < blocks; b++) {
    vec d0 = wasm_i32x4_splat(0), d1 = d0;
    ROLLED for (int g = 0; g < 8; g++) {
      vec q = load(w + g * 16), even = splat32(a + g * 4), odd = splat32(a + g * 4 + 2);
      d0 = dot2(even, wasm_v128_and(q, low), d0);
      d1 = dot2(even, wasm_v128_and(wasm_u16x8_shr(q, 4), low), d1);
      d0 = dot2(odd, wasm_v128_and(wasm_u16x8_shr(q, 8), low), d0);
      d1 = dot2(odd, wasm_u16x8_shr(q, 12), d1);
    }
    vec e = splat32(sa + b), f = splat32(ca + b), z0 = f, z1 = f;
    if (kind == OFFSET) z0 = load(z), z1 = load(z + 4);
    x0 = wide_scaled(x0, d0, load(s), z0, e, f, kind);
    x1 = wide_scaled(x1, d1, load(s + 4), z1, e, f, kind);
    w += 128, a += BLOCK, s += PANEL, z += PANEL;
  }
  out[0] = x0, out[1] = x1;
}

/* One panel's nibbles in the layout of 8-bit weights; without offsets, less the 8 they stand above zero. */
static void wide_unpack4(const uint8_t *w, uint8_t *u, int blocks, int kind) {
  vec low = wasm_i16x8_splat(15), zero = wasm_i8x16_splat(kind == OFFSET ? 0 : 8);
  for (int i = 0; i < blocks * 8; i++) {
    vec q = load(w + i * 16);
    vec even0 = wasm_v128_and(q, low), even1 = wasm_v128_and(wasm_u16x8_shr(q, 4), low);
    vec odd0 = wasm_v128_and(wasm_u16x8_shr(q, 8), low), odd1 = wasm_u16x8_shr(q, 12);
    store(u + i * 32, wasm_i8x16_sub(wasm_i8x16_narrow_i16x8(even0, even1), zero));
    store(u + i * 32 + 16, wasm_i8x16_sub(wasm_i8x16_narrow_i16x8(odd0, odd1), zero));
  }
}

INLINE void keep(float *y, vec low, vec high, const float *bias) {
  if (bias) low = wasm_f32x4_add(low, load(bias)), high = wasm_f32x4_add(high, load(bias + 4));
  store(y, low);
  store(y + 4, high);
}

INLINE void panels(const int bits, const int wide, const int kind, const uint8_t *w, const float *s, const float *z, const float *bias,
                   Activations act, float *y, int row_floats, int rows, int blocks, int first, int last,
                   uint8_t *scratch) {
  int panel_bytes = blocks * (bits == 4 ? 128 : 256), panel_scales = blocks * PANEL;
  for (int p = first; p < last; p++) {
    const uint8_t *wp = w + p * panel_bytes;
    const float *sp = s + p * panel_scales, *zp = kind == OFFSET ? z + p * panel_scales : s;
    const float *bp = bias ? bias + p * PANEL : 0;
    vec out[TILE][2];
    if (rows == 1) {
      if (bits == 8)
        tile_i16((const int8_t *)wp, sp, zp, act.values, act.scale, act.sum, blocks, 1, 1, kind, out);
#ifdef HB_RELAXED
      else if (!wide)
        narrow_gemv4(wp, sp, zp, act.values, act.scale, act.sum, blocks, kind, out[0]);
#endif
      else
        wide_gemv4(wp, sp, zp, act.values, act.scale, act.sum, blocks, kind, out[0]);
      keep(y + p * PANEL, out[0][0], out[0][1], bp);
      continue;
    }
#ifdef HB_RELAXED
    if (bits == 4 && !wide) narrow_unpack4(wp, scratch, blocks);
#endif
    if (bits == 4 && wide) wide_unpack4(wp, scratch, blocks, kind);
    if (bits == 4) wp = scratch;
    for (int t = 0; t * TILE < rows; t++) {
      int at = t * TILE * blocks;
      const float *sa = act.scale + at, *ca = act.sum + at;
#ifdef HB_RELAXED
      if (!wide)
        narrow_gemm4(wp, sp, zp, (const int8_t *)act.values + at * BLOCK, sa, ca, blocks, kind, out);
      else
#endif
        tile_i16((const int8_t *)wp, sp, zp, (const int16_t *)act.values + at * BLOCK, sa, ca, blocks, TILE, TILE,
                 kind, out);
      UNROLL for (int m = 0; m < TILE; m++)
        keep(y + (t * TILE + m) * row_floats + p * PANEL, out[m][0], out[m][1], bp);
    }
  }
}

void linear(int bits, int wide, const uint8_t *w, const float *s, const float *z, const float *bias, Activations a,
            float *y, int row_floats, int rows, int blocks, int first, int last, uint8_t *scratch) {
#ifndef HB_RELAXED
  (void)wide; /* all is wide */
#endif
#define RUN(bits, wide, kind) panels(bits, wide, kind, w, s, z, bias, a, y, row_floats, rows, blocks, first, last, scratch)
  if (bits == 8 && z) RUN(8, 1, OFFSET);
  else if (bits == 8) RUN(8, 1, SYMMETRIC);
#ifdef HB_RELAXED
  else if (!wide && z) RUN(4, 0, OFFSET);
  else if (!wide) RUN(4, 0, SYMMETRIC);
#endif
  else if (z) RUN(4, 1, OFFSET);
  else RUN(4, 1, SYMMETRIC);
#undef RUN
}
