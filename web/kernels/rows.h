/* Work on rows of float32 activations: [rows][row_floats], one row per token. */
#pragma once
#include "linear.h"

typedef struct {
  float *at;
  int row_floats; /* distance between rows; 0 repeats one row for every token */
} Rows;

enum { PLAIN = 0, SILU = 1, GELU_TANH = 2, GELU_ERF = 3, SIGMOID = 4, TANH = 5, RELU = 6 };
enum { ALONE = 0, TIMES = 1, PLUS = 2, MINUS = 3, OVER = 4 };

/* y = norm(x + skip + bias) * weight over `groups` runs of `width` per row; x + skip + bias is kept in `sum` if that
 * is not null. `skip.at` and `bias` may be null. */
void rms_norm(Rows x, Rows skip, const float *bias, const float *weight, float epsilon, Rows sum, Rows y, int width,
              int groups, int first, int last);

/* The same less its mean before it is squared, and plus `shift` at the end if that is not null: LayerNorm. */
void layer_norm(Rows x, Rows skip, const float *bias, const float *weight, const float *shift, float epsilon, Rows sum,
                Rows y, int width, int groups, int first, int last);

/* Rows as block-quantized activations (linear.h) in tiles [first, last) of `stride` tokens. Columns past `width`, up to
 * the end of the last of `blocks`, count as zero. */
void quantize(Rows x, int width, int blocks, int16_t *values, float *scale, float *sum, int stride, int rows, int first,
              int last);

/* y = activation(a) combined with b (or with `scalar` where b.at is null). */
void map(int activation, Rows a, int combine, Rows b, float scalar, Rows y, int width, int first, int last);

/* Row `id` of packed weights as float32: the embedding of a token. */
void embed(const Weights *w, int id, float *y);

/* The `k` largest of x[0, n) with their indices, largest first, the lower index first among equals. */
void top_k(const float *x, int n, int k, float *values, int32_t *ids);
