/* float32 values as integers with a common scale. */
#pragma once
#include "simd.h"

/* Round(x * factor), to even at a half, as int32; |x * factor| < 2^22. Three instructions where a saturating conversion
 * takes six. */
INLINE vec rounded(vec x, vec factor) {
  return wasm_i32x4_sub(f_madd(x, factor, f_splat(TO_INTEGER)), f_splat(TO_INTEGER));
}

/* 32 values to integers of at most `top`; i32 in q[8]. Returns the scale and adds the sum of the integers. */
INLINE float quantize_block(const float *x, int count, float top, vec q[8], int *sum) {
  float padded[BLOCK];
  if (count < BLOCK) {
    for (int i = 0; i < BLOCK; i++) padded[i] = i < count ? x[i] : 0.f;
    x = padded;
  }
  vec largest = f_splat(0.f);
  UNROLL for (int i = 0; i < 8; i++) largest = wasm_f32x4_pmax(largest, wasm_f32x4_abs(load(x + i * 4)));
  float most = f_top(largest);
  vec factor = f_splat(most > 1e-20f ? top / most : 0.f), total = wasm_i32x4_splat(0);
  UNROLL for (int i = 0; i < 8; i++) {
    q[i] = rounded(load(x + i * 4), factor);
    total = wasm_i32x4_add(total, q[i]);
  }
  *sum = wasm_i32x4_extract_lane(total, 0) + wasm_i32x4_extract_lane(total, 1) + wasm_i32x4_extract_lane(total, 2) +
         wasm_i32x4_extract_lane(total, 3);
  return most > 1e-20f ? most / top : 0.f;
}
