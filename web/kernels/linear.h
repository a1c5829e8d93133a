/* Block-quantized weights times block-quantized activations.
 *
 * Packed weights come in panels of 8 outputs; within a panel one block of 32 inputs after another, so that a token
 * (or a tile of four) runs through memory once and no horizontal sum is ever needed.
 *
 *   4 bit: 128 bytes per block = 8 groups of 4 inputs x 16 bytes; byte i*4+kk holds output i (low nibble) and
 *          output i+4 (high nibble) of input kk of the group. Values 0 to 15.
 *   8 bit: 256 bytes per block = 8 groups x 32 bytes; value (output o, input kk) at (kk&1)*16 + (o>>2)*8 + (o&3)*2
 *          + (kk>>1). Values -128 to 127 (ONNX's 0 to 255 less 128).
 *   scales: float32 [panel][block][8]; offsets likewise, or none. weight = scale * value + offset. Where there are no
 *          offsets, 4-bit values stand for value - 8 and 8-bit values for themselves.
 *
 * Activations come in tiles of four tokens (or of one), narrow (int8: for 4-bit weights with relaxed SIMD, twice as
 * fast) or wide (int16: for all else, where 15 bits of precision cost nothing). One float32 scale and one scaled sum per token and block:
 *   int8  [tile][group][token][4 inputs]
 *   int16 [tile][group][pair][token][2 inputs], where pair 0 is inputs 0 and 2 of the group, pair 1 inputs 1 and 3
 *   scale, sum: float32 [tile][block][token]; sum = scale * (sum of the block's integers)
 */
#pragma once
#include "simd.h"

typedef struct {
  const void *values;
  const float *scale, *sum;
} Activations;

enum { NO_SCALE = 0, SYMMETRIC = 1, OFFSET = 2 };

/* One tile of ROWS tokens x 8 outputs, int16 activations x int8 weights; `stride` is the tile's token count (1 or 4),
 * of which the first ROWS are computed. NO_SCALE: the weights have no scale (it was folded into the activations). */
INLINE void tile_i16(const int8_t *w, const float *s, const float *z, const int16_t *a, const float *sa,
                     const float *ca, int blocks, int stride, const int rows, const int kind, vec out[][2]) {
  vec x[TILE][2];
  UNROLL for (int m = 0; m < rows; m++) x[m][0] = x[m][1] = f_splat(0.f);
  for (int b = 0; b < blocks; b++) {
    vec d[TILE][2];
    UNROLL for (int m = 0; m < rows; m++) d[m][0] = d[m][1] = wasm_i32x4_splat(0);
    for (int g = 0; g < 8; g++) {
      UNROLL for (int pair = 0; pair < 2; pair++) {
        vec w0 = wasm_i16x8_load8x8(w), w1 = wasm_i16x8_load8x8(w + 8);
        UNROLL for (int m = 0; m < rows; m++) {
          vec t = splat32(a + m * 2);
          d[m][0] = wasm_i32x4_add(d[m][0], wasm_i32x4_dot_i16x8(t, w0));
          d[m][1] = wasm_i32x4_add(d[m][1], wasm_i32x4_dot_i16x8(t, w1));
        }
        w += 16;
        a += stride * 2;
      }
    }
    if (kind == NO_SCALE) {
      UNROLL for (int m = 0; m < rows; m++) {
        vec e = splat32(sa + m);
        x[m][0] = f_madd(wasm_f32x4_convert_i32x4(d[m][0]), e, x[m][0]);
        x[m][1] = f_madd(wasm_f32x4_convert_i32x4(d[m][1]), e, x[m][1]);
      }
    } else {
      vec s0 = load(s), s1 = load(s + 4);
      s += PANEL;
      UNROLL for (int m = 0; m < rows; m++) {
        vec e = splat32(sa + m);
        x[m][0] = f_madd(wasm_f32x4_convert_i32x4(d[m][0]), wasm_f32x4_mul(s0, e), x[m][0]);
        x[m][1] = f_madd(wasm_f32x4_convert_i32x4(d[m][1]), wasm_f32x4_mul(s1, e), x[m][1]);
      }
    }
    if (kind == OFFSET) {
      vec z0 = load(z), z1 = load(z + 4);
      z += PANEL;
      UNROLL for (int m = 0; m < rows; m++) {
        vec f = splat32(ca + m);
        x[m][0] = f_madd(z0, f, x[m][0]);
        x[m][1] = f_madd(z1, f, x[m][1]);
      }
    }
    sa += stride;
    ca += stride;
  }
  UNROLL for (int m = 0; m < rows; m++) {
    out[m][0] = x[m][0];
    out[m][1] = x[m][1];
  }
}

/* y[row][panel's 8 outputs] = activations x panels [first, last) of packed weights (+ bias), for `rows` tokens.
 * `y` has room for `rows` rounded up to whole tiles, `row_floats` apart. `scratch` holds one unpacked panel. */
void linear(int bits, int wide, const uint8_t *w, const float *s, const float *z, const float *bias, Activations a,
            float *y, int row_floats, int rows, int blocks, int first, int last, uint8_t *scratch);
