/* Repacking of weights at load: from ONNX's MatMulNBits layout, a piece of rows at a time, into the panels that
 * linear.h describes. The piece lies in a staging area that the loader fills from the shards. */
#include "simd.h"

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

INLINE float number(const void *from, uint32_t i, int half) {
  return half ? half_to_float(((const uint16_t *)from)[i]) : ((const float *)from)[i];
}

/* Scales of the same rows, [rows][groups] float32 or float16, where a group covers `per_group` blocks of 32; and their
 * offsets (`offset` null if there are none) from zero points of the kind `zero`: packed 4 or 8 bit (rows start on a
 * byte), float zero points, or the minima themselves, of values that were stored `shift` higher. */
void EXPORT(pack_scales)(int bits, const void *from, int half, int zero, const void *zeros, int zeros_half, float *scale,
                         float *offset, int first, int rows, int blocks, int groups, int per_group, float shift) {
  for (int r = 0; r < rows; r++) {
    uint32_t at = (uint32_t)((first + r) >> 3) * (uint32_t)blocks * PANEL + ((first + r) & 7);
    for (int b = 0; b < blocks; b++) {
      uint32_t i = (uint32_t)r * (uint32_t)groups + (uint32_t)(b / per_group);
      float s = number(from, i, half);
      scale[at + b * PANEL] = s;
      if (!offset) continue;
      float z;
      if (zero >= MINIMUM) {
        float least = number(zeros, i, zeros_half);
        offset[at + b * PANEL] = (zero == MINIMUM ? least : -least) + ((bits == 8 ? 128.f : 0.f) - shift) * s;
        continue;
      }
      if (zero == ZERO_FLOAT) {
        z = number(zeros, i, zeros_half);
      } else if (bits == 8) {
        z = ((const uint8_t *)zeros)[i];
      } else { /* two zero points a byte, low nibble first, every row on its own bytes */
        int g = b / per_group;
        z = (((const uint8_t *)zeros)[r * ((groups + 1) / 2) + g / 2] >> (g & 1) * 4) & 15;
      }
      offset[at + b * PANEL] = -s * (bits == 8 ? z - 128.f : z);
    }
  }
}

/* `count` float16 as float32. */
void EXPORT(widen_half)(const uint16_t *from, float *to, int count) {
  for (int i = 0; i < count; i++) to[i] = half_to_float(from[i]);
}
