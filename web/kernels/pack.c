/* Repacking of weights at load: from ONNX's MatMulNBits layout, a piece of rows at a time, into the panels that
 * linear.h describes. The piece lies in a staging area that the loader fills from the shards. */
#include "linear.h"

/* How the staged zero points are to be read. */
enum { ZERO_NONE = 0, ZERO_PACKED = 1, ZERO_FLOAT = 2, MINIMUM = 3, MINIMUM_NEGATED = 4 };

/* Rows [first, first + rows) of uint8 [N][blocks][16 * bits / 4] (low nibble first); `first` is a multiple of 8. Rows
 * that complete the last panel keep the zeros that memory starts with, and their scales too. */
void EXPORT(pack_values)(int bits, const uint8_t *from, uint8_t *to, int first, int rows, int blocks) {
  for (int r = 0; r < rows; r++) {
    int lane = (first + r) & 7;
    uint8_t *panel = to + (uint32_t)((first + r) >> 3) * (uint32_t)blocks * (bits == 4 ? 128u : 256u);
    for (int b = 0; b < blocks; b++) {
      if (bits == 4) {
        const uint8_t *in = from + (uint32_t)(r * blocks + b) * 16;
        uint8_t *out = panel + b * 128 + (lane & 3) * 4;
        int shift = lane < 4 ? 0 : 4;
        for (int g = 0; g < 8; g++) {
          out[g * 16] |= (in[g * 2] & 15) << shift;
          out[g * 16 + 1] |= (in[g * 2] >> 4) << shift;
          out[g * 16 + 2] |= (in[g * 2 + 1] & 15) << shift;
          out[g * 16 + 3] |= (in[g * 2 + 1] >> 4) << shift;
        }
      } else {
        const uint8_t *in = from + (uint32_t)(r * blocks + b) * 32;
        uint8_t *out = panel + b * 256 + lane * 2;
        for (int g = 0; g < 8; g++) {
          out[g * 32] = in[g * 4] ^ 128;
          out[g * 32 + 1] = in[g * 4 + 2] ^ 128;
          out[g * 32 + 16] = in[g * 4 + 1] ^ 128;
          out[g * 32 + 17] = in[g * 4 + 3] ^ 128;
        }
      }
    }
  }
}

/* Whether number `i` of float16 or float32 ones is neither infinite nor NaN. */
INLINE int is_finite(const void *from, uint32_t i, int half) {
  if (half) return (((const uint16_t *)from)[i] & 0x7c00) != 0x7c00;
  return (((const uint32_t *)from)[i] & 0x7f800000) != 0x7f800000;
}

/* Whether all `count` are. */
int EXPORT(are_finite)(const void *from, int half, int count) {
  int all = 1;
  for (int i = 0; i < count; i++) all &= is_finite(from, (uint32_t)i, half);
  return all;
}

INLINE float number(const void *from, uint32_t i, int half) {
  return half ? half_to_float(((const uint16_t *)from)[i]) : ((const float *)from)[i];
}

/* The negated zero point number `i` of row `r`. */
INLINE float zero_point(int bits, int zero, const void *zeros, int zeros_half, int r, int i, int groups) {
  if (zero == ZERO_FLOAT) {
    float z = number(zeros, (uint32_t)r * (uint32_t)groups + (uint32_t)i, zeros_half);
    return bits == 8 ? 128.f - z : -z;
  }
  if (bits == 8) return 128.f - ((const uint8_t *)zeros)[r * groups + i];
  /* two zero points a byte, low nibble first, every row on its own bytes */
  return -(float)((((const uint8_t *)zeros)[r * ((groups + 1) / 2) + i / 2] >> (i & 1) * 4) & 15);
}

INLINE void put(void *to, uint32_t i, int half, float x) {
  if (half) ((uint16_t *)to)[i] = float_to_half(x);
  else ((float *)to)[i] = x;
}

/* Scales of the same rows, [rows][groups] float32 or float16, where a group covers `per_group` blocks of 32; and their
 * offsets (`offset` null if there are none) from zero points of the kind `zero`: packed 4 or 8 bit (rows start on a
 * byte), float zero points, or the minima themselves, of values that were stored `shift` higher. They are kept as
 * `stored` says (linear.h); as float16 only what is one already. */
void EXPORT(pack_scales)(int bits, const void *from, int half, int zero, const void *zeros, int zeros_half, int stored,
                         void *scale, void *offset, int first, int rows, int blocks, int groups, int per_group,
                         float shift) {
  for (int r = 0; r < rows; r++) {
    uint32_t at = (uint32_t)((first + r) >> 3) * (uint32_t)blocks * PANEL + ((first + r) & 7);
    for (int b = 0; b < blocks; b++, at += PANEL) {
      uint32_t i = (uint32_t)r * (uint32_t)groups + (uint32_t)(b / per_group);
      float s = number(from, i, half);
      put(scale, at, stored != FLOATS, s);
      if (!offset) continue;
      if (zero >= MINIMUM) {
        float least = number(zeros, i, zeros_half);
        float z = (zero == MINIMUM ? least : -least) + ((bits == 8 ? 128.f : 0.f) - shift) * s;
        put(offset, at, stored != FLOATS, z);
        continue;
      }
      float z = zero_point(bits, zero, zeros, zeros_half, r, b / per_group, groups);
      put(offset, at, stored != FLOATS, stored == HALF_POINTS ? z : s * z);
    }
  }
}

/* `count` float16 as float32. */
void EXPORT(widen_half)(const uint16_t *from, float *to, int count) {
  for (int i = 0; i < count; i++) to[i] = half_to_float(from[i]);
}
