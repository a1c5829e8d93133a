/* Norms, quantization of activations, elementwise functions, embedding rows and top-k; described in rows.h. */
#include "quantize.h"
#include "rows.h"

/* Row `r` of a norm's input from `start` on: of x, or of x + skip + bias, kept in `sum` or else in `out`. */
INLINE const float *with_skip(Rows x, Rows skip, const float *bias, Rows sum, float *out, int width, int r, int start) {
  const float *in = x.at + r * x.row_floats + start;
  if (!skip.at) return in;
  const float *other = skip.at + r * skip.row_floats + start;
  float *kept = sum.at ? sum.at + r * sum.row_floats + start : out;
  int whole = width & ~3;
  for (int i = 0; i < whole; i += 4) {
    vec v = wasm_f32x4_add(load(in + i), load(other + i));
    if (bias) v = wasm_f32x4_add(v, load(bias + i));
    store(kept + i, v);
  }
  for (int i = whole; i < width; i++) kept[i] = in[i] + other[i] + (bias ? bias[i] : 0.f);
  return kept;
}

void rms_norm(Rows x, Rows skip, const float *bias, const float *weight, float epsilon, Rows sum, Rows y, int width,
              int groups, int first, int last) {
  int whole = width & ~3;
  for (int r = first; r < last; r++) {
    for (int group = 0; group < groups; group++) {
      float *out = y.at + r * y.row_floats + group * width;
      const float *in = with_skip(x, skip, bias, sum, out, width, r, group * width);
      vec squares = f_splat(0.f);
      for (int i = 0; i < whole; i += 4) {
        vec v = load(in + i);
        squares = f_madd(v, v, squares);
      }
      float total = f_sum(squares);
      for (int i = whole; i < width; i++) total += in[i] * in[i];
      float factor = 1.f / __builtin_sqrtf(total / (float)width + epsilon);
      for (int i = 0; i < whole; i += 4)
        store(out + i, wasm_f32x4_mul(wasm_f32x4_mul(load(in + i), f_splat(factor)), load(weight + i)));
      for (int i = whole; i < width; i++) out[i] = in[i] * factor * weight[i];
    }
  }
}

void layer_norm(Rows x, Rows skip, const float *bias, const float *weight, const float *shift, float epsilon, Rows sum,
                Rows y, int width, int groups, int first, int last) {
  int whole = width & ~3;
  for (int r = first; r < last; r++) {
    for (int group = 0; group < groups; group++) {
      float *out = y.at + r * y.row_floats + group * width;
      const float *in = with_skip(x, skip, bias, sum, out, width, r, group * width);
      vec sums = f_splat(0.f), squares = f_splat(0.f);
      for (int i = 0; i < whole; i += 4) sums = wasm_f32x4_add(sums, load(in + i));
      float mean = f_sum(sums), rest = 0.f, total = 0.f;
      for (int i = whole; i < width; i++) mean += in[i];
      mean /= (float)width;
      sums = f_splat(0.f);
      for (int i = 0; i < whole; i += 4) {
        vec v = wasm_f32x4_sub(load(in + i), f_splat(mean));
        sums = wasm_f32x4_add(sums, v), squares = f_madd(v, v, squares);
      }
      for (int i = whole; i < width; i++) rest += in[i] - mean, total += (in[i] - mean) * (in[i] - mean);
      /* What rounding left out of the mean, which counts where a row lies far from zero (corrected two-pass variance). */
      rest = (f_sum(sums) + rest) / (float)width;
      float variance = (f_sum(squares) + total) / (float)width - rest * rest;
      float factor = 1.f / __builtin_sqrtf((variance > 0.f ? variance : 0.f) + epsilon);
      for (int i = 0; i < whole; i += 4) {
        vec v = wasm_f32x4_sub(wasm_f32x4_sub(load(in + i), f_splat(mean)), f_splat(rest));
        v = wasm_f32x4_mul(v, f_splat(factor));
        store(out + i, f_madd(v, load(weight + i), shift ? load(shift + i) : f_splat(0.f)));
      }
      for (int i = whole; i < width; i++)
        out[i] = (in[i] - mean - rest) * factor * weight[i] + (shift ? shift[i] : 0.f);
    }
  }
}

void quantize(Rows x, int width, int blocks, int16_t *values, float *scale, float *sum, int stride, int rows, int first,
              int last) {
  for (int t = first; t < last; t++) {
    for (int m = 0; m < stride && t * stride + m < rows; m++) {
      const float *in = x.at + (t * stride + m) * x.row_floats;
      for (int b = 0; b < blocks; b++) {
        vec q[8];
        int integers, at = (t * blocks + b) * stride;
        float s = quantize_block(in + b * BLOCK, width - b * BLOCK, 32767.f, q, &integers);
        scale[at + m] = s;
        sum[at + m] = s * (float)integers;
        int16_t *out = values + at * BLOCK + m * 2;
        UNROLL for (int g = 0; g < 8; g++) { /* lanes 0 2 1 3: the even pair, then the odd one */
          vec pairs = wasm_i16x8_narrow_i32x4(wasm_i32x4_shuffle(q[g], q[g], 0, 2, 1, 3), q[g]);
          wasm_v128_store32_lane(out + g * 4 * stride, pairs, 0);
          wasm_v128_store32_lane(out + g * 4 * stride + 2 * stride, pairs, 1);
        }
      }
    }
  }
}

INLINE vec activate(const int activation, vec x) {
  switch (activation) {
    case SILU: return wasm_f32x4_mul(x, f_sigmoid(x));
    case GELU_TANH: { /* 0.5 x (1 + tanh u) = x sigmoid(2u) */
      vec u = wasm_f32x4_mul(x, f_madd(wasm_f32x4_mul(x, x), f_splat(0.0356774081f), f_splat(0.7978845608f)));
      return wasm_f32x4_mul(x, f_sigmoid(wasm_f32x4_add(u, u)));
    }
    case GELU_ERF: {
      vec e = f_erf(wasm_f32x4_mul(x, f_splat(0.7071067812f)));
      return wasm_f32x4_mul(wasm_f32x4_mul(x, f_splat(0.5f)), wasm_f32x4_add(e, f_splat(1.f)));
    }
    case SIGMOID: return f_sigmoid(x);
    case TANH: return f_tanh(x);
    case RELU: return wasm_f32x4_pmax(f_splat(0.f), x);
    default: return x;
  }
}

INLINE void map_rows(const int activation, Rows a, int combine, Rows b, float scalar, Rows y, int width, int first,
                     int last) {
  for (int r = first; r < last; r++) {
    const float *in = a.at + r * a.row_floats, *other = b.at ? b.at + r * b.row_floats : 0;
    float *out = y.at + r * y.row_floats;
    for (int i = 0; i < width; i += 4) { /* rows are padded to whole vectors */
      vec v = activate(activation, load(in + i)), w = other ? load(other + i) : f_splat(scalar);
      switch (combine) {
        case TIMES: v = wasm_f32x4_mul(v, w); break;
        case PLUS: v = wasm_f32x4_add(v, w); break;
        case MINUS: v = wasm_f32x4_sub(v, w); break;
        case OVER: v = wasm_f32x4_div(v, w); break;
      }
      store(out + i, v);
    }
  }
}

void map(int activation, Rows a, int combine, Rows b, float scalar, Rows y, int width, int first, int last) {
  switch (activation) {
    case SILU: return map_rows(SILU, a, combine, b, scalar, y, width, first, last);
    case GELU_TANH: return map_rows(GELU_TANH, a, combine, b, scalar, y, width, first, last);
    case GELU_ERF: return map_rows(GELU_ERF, a, combine, b, scalar, y, width, first, last);
    case SIGMOID: return map_rows(SIGMOID, a, combine, b, scalar, y, width, first, last);
    case TANH: return map_rows(TANH, a, combine, b, scalar, y, width, first, last);
    case RELU: return map_rows(RELU, a, combine, b, scalar, y, width, first, last);
    default: return map_rows(PLAIN, a, combine, b, scalar, y, width, first, last);
  }
}

INLINE float number(const Weights *w, const uint8_t *from, uint32_t i) {
  return w->stored == FLOATS ? ((const float *)from)[i] : half_to_float(((const uint16_t *)from)[i]);
}

void embed(const Weights *w, int id, float *y) {
  const int lane = id & 7, bits = w->bits, halves = w->halves;
  const uint8_t *values = w->values + (uint32_t)(id >> 3) * (uint32_t)w->blocks * (bits == 4 ? 128u : 256u);
  uint32_t first = (uint32_t)(id >> 3) * (uint32_t)(w->blocks * halves) * PANEL + (uint32_t)lane;
  for (int b = 0; b < w->blocks; b++, values += bits * BLOCK) {
    for (int k = 0; k < BLOCK; k++) {
      uint32_t at = first + (uint32_t)(b * halves + k * halves / BLOCK) * PANEL;
      float factor = number(w, w->scale, at), offset = bits == 4 ? -8.f * factor : 0.f;
      if (w->offset) offset = number(w, w->offset, at) * (w->stored == HALF_POINTS ? factor : 1.f);
      int g = k >> 2, kk = k & 3, q;
      if (bits == 4) {
        int byte = values[g * 16 + (lane & 3) * 4 + kk];
        q = lane < 4 ? byte & 15 : byte >> 4;
      } else {
        q = (int8_t)values[g * 32 + (kk & 1) * 16 + lane * 2 + (kk >> 1)];
      }
      y[b * BLOCK + k] = factor * (float)q + offset;
    }
  }
}

/* Is candidate i worse than candidate j? The order of the heap: the worst of the best on top. */
INLINE int worse(const float *values, const int32_t *ids, int i, int j) {
  return values[i] < values[j] || (values[i] == values[j] && ids[i] > ids[j]);
}

static void sift(float *values, int32_t *ids, int i, int n) {
  for (;;) {
    int child = 2 * i + 1;
    if (child >= n) return;
    if (child + 1 < n && worse(values, ids, child + 1, child)) child++;
    if (!worse(values, ids, child, i)) return;
    float v = values[i];
    int32_t id = ids[i];
    values[i] = values[child], ids[i] = ids[child];
    values[child] = v, ids[child] = id;
    i = child;
  }
}

void top_k(const float *x, int n, int k, float *values, int32_t *ids) {
  if (k > n) k = n;
  for (int i = 0; i < k; i++) values[i] = x[i], ids[i] = i;
  for (int i = k / 2 - 1; i >= 0; i--) sift(values, ids, i, k);
  for (int i = k; i < n;) {
    if (i + 8 <= n) { /* most of the vocabulary is below the worst kept: skip eight at a time */
      vec floor = f_splat(values[0]);
      if (!wasm_v128_any_true(wasm_v128_or(wasm_f32x4_gt(load(x + i), floor), wasm_f32x4_gt(load(x + i + 4), floor)))) {
        i += 8;
        continue;
      }
    }
    int end = i + 8 < n ? i + 8 : n;
    for (; i < end; i++)
      if (x[i] > values[0]) values[0] = x[i], ids[0] = i, sift(values, ids, 0, k);
  }
  for (int left = k - 1; left > 0; left--) { /* heap sort: the worst goes to the back each time */
    float v = values[0];
    int32_t id = ids[0];
    values[0] = values[left], ids[0] = ids[left];
    values[left] = v, ids[left] = id;
    sift(values, ids, 0, left);
  }
}
