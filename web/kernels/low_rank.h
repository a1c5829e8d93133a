/* The branch that an adapter adds to a matrix: y += (x · A) · B in float32 (LoRA, arXiv 2106.09685).
 *
 * A and B lie in panels of 8 columns, float32 [panel][inputs][8], zeros where the last panel or the rank is padded: a
 * token runs through each once, and its sums do not depend on how many tokens a step has.
 */
#pragma once
#include "rows.h"

/* Rows [first, last) of y += x · a · b: x has `width` columns, y `outputs` panels, x · a `ranks` panels. `scratch` has
 * room for a tile of x · a: TILE * ranks * 8 floats. */
void low_rank(Rows x, const float *a, const float *b, int width, int ranks, int outputs, Rows y, int first, int last,
              float *scratch);
