/* Grouped-query attention over a KV cache of fixed size, kept as int8.
 *
 * A key is quantized per 32 of its head_dim values, a value per token and head. Both lie in panels like 8-bit weights
 * (linear.h), so that scores are the product of queries and "weights" K, and the output that of probabilities and V:
 *   keys       int8 [kv_head][context / 8][head_blocks][256]: a position is an output, head_dim the inputs
 *   key_scale  float32 [kv_head][context / 8][head_blocks][8]
 *   values     int8 [kv_head][head_dim / 8][context / 32][256]: head_dim are outputs, positions the inputs
 *   value_scale float32 [kv_head][context], folded into the probabilities
 * Keys and values are mixed by a Walsh-Hadamard transform first, against outliers. Queries and probabilities are int16, so the cache's own rounding is the only one that shows. `context` is a multiple
 * of 32, head_dim of 8. Positions past the end hold old integers; masked, they count as zero.
 */
#pragma once
#include "rows.h"

typedef struct {
  int8_t *keys;
  float *key_scale;
  int8_t *values;
  float *value_scale;
  int context, kv_heads, head_dim;
} Cache;

typedef struct {
  const float *cos, *sin; /* [positions][rotary / 2] */
  int rotary;             /* leading dimensions of a head that are rotated; 0 for none */
  int interleaved;        /* pairs are (0, 1), (2, 3) … rather than (0, rotary / 2) … */
} Rotary;

typedef struct {
  int heads, window; /* keys a query sees, itself included; 0 for all */
  float scale, softcap; /* softcap 0 for none */
} Attention;

/* Rotates and stores the keys and values of rows [first, last), which stand at `position` + row. */
void store_kv(const Cache *cache, const Rotary *rotary, Rows keys, Rows values, int position, int first, int last);

/* Tiles of up to four (token, query head) pairs that share a kv head; how many there are for `tokens`. */
int attention_tiles(const Cache *cache, const Attention *attention, int tokens);

/* Tile `tile` of the attention of `tokens` queries, the first of which stands at `position`. */
void attend(const Cache *cache, const Rotary *rotary, const Attention *attention, Rows queries, Rows out, int tokens,
            int position, int tile, uint8_t *scratch);
