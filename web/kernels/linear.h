/* Block-quantized weights times block-quantized activations.
 *
 * Packed weights come in panels of 8 outputs; within a panel one block of 32 inputs after another, so that a token
 * (or a tile of four) runs through memory once and no horizontal sum is ever needed.
 *
 *   4 bit: 128 bytes per block = 8 groups of 4 inputs x 16 bytes; byte i*4+kk holds output i (low nibble) and
 *          output i+4 (high nibble) of input kk of the group. Values 0 to 15.
 *   8 bit: 256 bytes per block = 8 groups x 32 bytes; value (output o, input kk) at (kk&1)*16 + (o>>2)*8 + (o&3)*2
 *          + (kk>>1). Values -128 to 127 (ONNX's 0 to 255 less 128).
 *   scales: [panel][block][8]; offsets likewise, or none. weight = scale * value + offset. Where there are no offsets,
 *          4-bit values stand for value - 8 and 8-bit values for themselves. 8-bit values without offsets may have a
 *          scale for every 16 inputs: [panel][block][2][8]. Both are float16 where the shards have them so (a tenth of
 *          what decoding reads) and float32 where they are products, which float16 would round.
 *
 * Activations are int16 with one float32 scale per token and block of 32, in tiles of four tokens (or of one). int8
 * would be twice as fast where many tokens share a weight, but takes SmolLM2's likeliest token from 99.9 to 97 % of
 * agreement with float32 (tests/bench/cpu/fidelity.py).
 *   values: int16 [tile][group][pair][token][2 inputs], where pair 0 is inputs 0 and 2 of the group, pair 1 is 1 and 3
 *   scale, sum: float32 [tile][block][token]; sum = scale * (sum of the block's integers)
 *
 * A row's result does not depend on how many rows a step has: one token and many go through the same sums in the same
 * order, so that checking several drafted tokens in one step gives bit for bit what one step each would.
 */
#pragma once
#include "simd.h"

/* How scales and offsets lie in memory: as float32; as float16; as float16, with the negated zero point in the place of
 * the offset, which is scale * that. The loader (cpu-link.js) writes these numbers. */
enum { FLOATS = 0, HALF_FLOATS = 1, HALF_POINTS = 2 };

typedef struct {
  int32_t bits, halves, stored, outputs, blocks; /* halves: scales for each block of 32 inputs, 1 or 2 */
  const uint8_t *values, *scale, *offset;        /* offset null where there is none */
  const float *bias;
} Weights;

typedef struct {
  const int16_t *values;
  const float *scale, *sum;
} Activations;

/* d[m] += the products of `pairs` pairs of inputs: weights int16 [pair][8 outputs][2], activations int16 of `rows` rows,
 * [pair][stride][2]. */
INLINE void dot_pairs(const int16_t *w, const int16_t *a, int pairs, int stride, const int rows, vec d[][2]) {
  const int16_t *end = w + pairs * 16;
  ROLLED do {
    vec w0 = load(w), w1 = load(w + 8);
    UNROLL for (int m = 0; m < rows; m++) {
      vec t = splat32(a + m * 2);
      d[m][0] = wasm_i32x4_add(wasm_i32x4_dot_i16x8(t, w0), d[m][0]);
      d[m][1] = wasm_i32x4_add(wasm_i32x4_dot_i16x8(t, w1), d[m][1]);
    }
    w += 16, a += stride * 2;
  } while (w != end);
}

/* y[row][panel's 8 outputs] = activations x panels [first, last) of packed weights (+ bias), for `rows` tokens. `y` has
 * room for `rows` rounded up to whole tiles, `row_floats` apart. `scratch` holds one unpacked panel: 576 bytes per
 * block. */
void linear(const Weights *w, Activations a, float *y, int row_floats, int rows, int first, int last, uint8_t *scratch);
