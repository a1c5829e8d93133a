/* Four-lane helpers over WebAssembly SIMD.
 *
 * Only instructions that every browser since 2023 has: relaxed SIMD's fused multiply-add brought nothing (decode 0.98,
 * prompt 1.02 times as fast without it), and its 8-bit dot products are too coarse (linear.h). So every browser and
 * machine computes the same bits. No libc, no globals: whatever a kernel needs is passed in, so that any number of
 * threads can run it over one memory.
 */
#pragma once
#include <stdint.h>
#include <wasm_simd128.h>

typedef v128_t vec;

#define INLINE static inline __attribute__((always_inline))
#define EXPORT(name) __attribute__((export_name(#name), visibility("default"))) name
#define UNROLL _Pragma("clang loop unroll(full)")
/* One pair of inputs at a time: of longer bodies the loads are hoisted, and V8's register allocator spills (16 registers
 * hold 8 sums, 2 weights and what is in flight): 30 against 24 GMAC/s with two pairs, 19 with four. */
#define ROLLED _Pragma("clang loop unroll(disable)")

enum { BLOCK = 32, PANEL = 8, TILE = 4 }; /* weights per scale, outputs per panel, tokens per tile */

INLINE vec f_splat(float x) { return wasm_f32x4_splat(x); }
INLINE vec load(const void *p) { return wasm_v128_load(p); }
INLINE void store(void *p, vec v) { wasm_v128_store(p, v); }
INLINE vec splat32(const void *p) { return wasm_v128_load32_splat(p); }

INLINE vec f_madd(vec a, vec b, vec c) { return wasm_f32x4_add(wasm_f32x4_mul(a, b), c); }

INLINE float f_sum(vec v) {
  return (wasm_f32x4_extract_lane(v, 0) + wasm_f32x4_extract_lane(v, 2)) +
         (wasm_f32x4_extract_lane(v, 1) + wasm_f32x4_extract_lane(v, 3));
}

INLINE float f_top(vec v) {
  v = wasm_f32x4_pmax(v, wasm_i32x4_shuffle(v, v, 2, 3, 0, 1));
  v = wasm_f32x4_pmax(v, wasm_i32x4_shuffle(v, v, 1, 0, 3, 2));
  return wasm_f32x4_extract_lane(v, 0);
}

/* 1.5 * 2^23: added to a float below 2^22, it leaves the nearest integer (to even at a half) in the last bits. */
#define TO_INTEGER 12582912.f

/* e^x, relative error below 2e-7 (Cephes expf: two-part ln 2 and a degree-5 polynomial). x is clamped to [-60, 88]:
 * further down the results of a softmax turn into denormals, which made attention two to six times as slow. */
INLINE vec f_exp(vec x) {
  x = wasm_f32x4_pmin(wasm_f32x4_pmax(x, f_splat(-60.f)), f_splat(88.f));
  vec shifted = f_madd(x, f_splat(1.44269504f), f_splat(TO_INTEGER)), n = wasm_f32x4_sub(shifted, f_splat(TO_INTEGER));
  vec r = f_madd(n, f_splat(-0.693359375f), x);
  r = f_madd(n, f_splat(2.12194440e-4f), r);
  vec y = f_splat(1.9875691500e-4f);
  y = f_madd(y, r, f_splat(1.3981999507e-3f));
  y = f_madd(y, r, f_splat(8.3334519073e-3f));
  y = f_madd(y, r, f_splat(4.1665795894e-2f));
  y = f_madd(y, r, f_splat(1.6666665459e-1f));
  y = f_madd(y, r, f_splat(5.0000001201e-1f));
  y = f_madd(y, wasm_f32x4_mul(r, r), wasm_f32x4_add(r, f_splat(1.f)));
  vec power = wasm_i32x4_shl(wasm_i32x4_add(shifted, wasm_i32x4_splat(127)), 23); /* TO_INTEGER's own bits go out above */
  return wasm_f32x4_mul(y, power);
}

INLINE vec f_sigmoid(vec x) {
  return wasm_f32x4_div(f_splat(1.f), wasm_f32x4_add(f_splat(1.f), f_exp(wasm_f32x4_neg(x))));
}

/* tanh x = 2 sigmoid(2x) - 1; absolute error below 3e-7, which is what soft-capping and GELU need. */
INLINE vec f_tanh(vec x) {
  return wasm_f32x4_sub(wasm_f32x4_mul(f_splat(2.f), f_sigmoid(wasm_f32x4_add(x, x))), f_splat(1.f));
}

/* erf x after Abramowitz and Stegun 7.1.26, absolute error below 5e-7. */
INLINE vec f_erf(vec x) {
  vec a = wasm_f32x4_abs(x);
  vec t = wasm_f32x4_div(f_splat(1.f), f_madd(a, f_splat(0.3275911f), f_splat(1.f)));
  vec y = f_splat(1.061405429f);
  y = f_madd(y, t, f_splat(-1.453152027f));
  y = f_madd(y, t, f_splat(1.421413741f));
  y = f_madd(y, t, f_splat(-0.284496736f));
  y = f_madd(y, t, f_splat(0.254829592f));
  y = wasm_f32x4_mul(wasm_f32x4_mul(y, t), f_exp(wasm_f32x4_neg(wasm_f32x4_mul(a, a))));
  y = wasm_f32x4_sub(f_splat(1.f), y);
  vec sign = wasm_v128_and(x, wasm_i32x4_splat((int32_t)0x80000000));
  return wasm_v128_or(y, sign);
}

/* IEEE half to float, subnormals included: shift the bits into place and let one multiplication by 2^112 set the
 * exponent. Infinities and NaN would become large numbers: the loader has refused them (are_finite of pack.c). */
INLINE float half_to_float(uint16_t h) {
  union { uint32_t u; float f; } bits = {(uint32_t)(h & 0x7fff) << 13};
  bits.f *= 0x1p112f;
  bits.u |= (uint32_t)(h & 0x8000) << 16;
  return bits.f;
}

/* Back again, of what was a half. */
INLINE uint16_t float_to_half(float x) {
  union { float f; uint32_t u; } bits = {x * 0x1p-112f};
  return (uint16_t)((bits.u >> 16 & 0x8000) | (bits.u >> 13 & 0x7fff));
}

/* Four halves as floats. Sign extension leaves copies of the sign where the exponent's upper bits belong. */
INLINE vec load_halves(const void *p) {
  vec bits = wasm_v128_and(wasm_i32x4_shl(wasm_i32x4_load16x4(p), 13), wasm_i32x4_splat((int32_t)0x8fffffff));
  return wasm_f32x4_mul(bits, f_splat(0x1p112f));
}

/* Ask for memory, a cache line of 64 bytes at a time. WebAssembly has no prefetch: the loads' values are not used, they
 * only have to be on their way together. Otherwise, where the processor's own prefetching does not keep up, arithmetic
 * fills its reorder buffer and eight lines or so are all that is waited for at once: 3.3 GB/s of a core that reads 12. */
INLINE void touch(const void *from, int bytes) {
  for (int i = 0; i < bytes; i += 64) (void)*((const volatile uint8_t *)from + i);
}
