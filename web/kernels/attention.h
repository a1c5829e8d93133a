/* Grouped-query attention over a KV cache of fixed size, kept as int16.
 *
 * Keys and values are rounded to 13 bits with one scale per position and head: a sixteenth of the error of int8, which
 * alone took 0.9 % of SmolLM2's likeliest tokens away from float32's, and faster, because nothing is widened. Both lie
 * in panels like unpacked weights (dot_pairs of linear.h), so that scores are the product of queries and "weights" K,
 * and the output that of probabilities and V:
 *   keys        int16 [span][kv_head][SPAN / 8][head_dim / 2][8 positions][2 dims]
 *   key_scale   float32 [span][kv_head][SPAN]
 *   values      int16 [span][kv_head][head_dim / 8][SPAN / 2][8 dims][2 positions]
 *   value_scale float32 [span][kv_head][SPAN], folded into the probabilities
 * One span of all layers lies after the other, so that memory is touched as far as it is used and what is read together
 * lies together. head_dim is a multiple of 8. Positions past the end hold old integers; masked, they count as zero.
 *
 * A row's softmax runs over SPANs of positions that start at multiples of SPAN, one after the other (online softmax,
 * Milakov and Gimelshein 2018, arXiv 1805.02867), so its sums do not depend on the step it is part of, nor on the
 * threads: they may take a span each and leave the joining to `join` (as in Flash-Decoding, Dao et al. 2023).
 */
#pragma once
#include "rows.h"

enum { SPAN = 256 }; /* its scores and 64 of a head's keys stay in the first-level cache */

typedef struct {
  int16_t *keys;
  float *key_scale;
  int16_t *values;
  float *value_scale;
  int span_bytes; /* from a span to the next one, for all four */
  int kv_heads, head_dim;
} Cache;

typedef struct {
  const float *cos, *sin; /* [positions][rotary / 2] */
  int rotary;             /* leading dimensions of a head that are rotated; 0 for none */
  int interleaved;        /* pairs are (0, 1), (2, 3) … rather than (0, rotary / 2) … */
  int switch_at, second;  /* of longrope: a step whose total length is more than switch_at (0: never) uses the tables
                             that begin `second` floats further on, for the keys that it stores and its queries */
} Rotary;

typedef struct {
  int heads, window; /* keys a query sees, itself included; 0 for all */
  float scale, softcap; /* softcap 0 for none */
} Attention;

/* Rotates and stores the keys and values of rows [first, last), which stand at `position` + row. */
void store_kv(const Cache *cache, const Rotary *rotary, Rows keys, Rows values, int position, int first, int last);

/* Tiles of up to four (token, query head) pairs that share a kv head; how many there are for `tokens`. */
int attention_tiles(const Cache *cache, const Attention *attention, int tokens);

/* Spans that the queries of `tokens` tokens from `position` on see. */
int attention_spans(const Attention *attention, int tokens, int position);

/* Tile `tile` of the attention of `tokens` queries, the first of which stands at `position`. */
void attend(const Cache *cache, const Rotary *rotary, const Attention *attention, Rows queries, Rows out, int tokens,
            int position, int tile, uint8_t *scratch);

/* One span of a tile of a single token's attention: number `task` of tiles x spans. Its part of the output goes to
 * `parts`, float32 [heads][spans][head_dim + 4]: the sum of exponents and their maximum stand behind the values. */
void attend_span(const Cache *cache, const Rotary *rotary, const Attention *attention, Rows queries, float *parts,
                 int position, int task, uint8_t *scratch);

/* The output of heads [first, last) from their parts. */
void join(const Cache *cache, const Attention *attention, const float *parts, Rows out, int position, int first, int last);
