/* The low-rank branches of adapters; described in low_rank.h. */
#include "low_rank.h"

/* y = x · w, or y += x · w where `adds`, for `rows` rows that are x_floats and y_floats apart. */
INLINE void product(const float *x, int x_floats, const float *w, int inputs, int panels, float *y, int y_floats,
                    const int rows, const int adds) {
  for (int p = 0; p < panels; p++) {
    vec s[TILE][2];
    UNROLL for (int m = 0; m < rows; m++) {
      s[m][0] = adds ? load(y + m * y_floats + p * PANEL) : f_splat(0.f);
      s[m][1] = adds ? load(y + m * y_floats + p * PANEL + 4) : f_splat(0.f);
    }
    for (int i = 0; i < inputs; i++, w += PANEL) {
      vec w0 = load(w), w1 = load(w + 4);
      UNROLL for (int m = 0; m < rows; m++) {
        vec t = splat32(x + m * x_floats + i);
        s[m][0] = f_madd(t, w0, s[m][0]);
        s[m][1] = f_madd(t, w1, s[m][1]);
      }
    }
    UNROLL for (int m = 0; m < rows; m++) {
      store(y + m * y_floats + p * PANEL, s[m][0]);
      store(y + m * y_floats + p * PANEL + 4, s[m][1]);
    }
  }
}

INLINE void tile(Rows x, const float *a, const float *b, int width, int ranks, int outputs, Rows y, int row,
                 const int rows, float *low) {
  product(x.at + row * x.row_floats, x.row_floats, a, width, ranks, low, ranks * PANEL, rows, 0);
  product(low, ranks * PANEL, b, ranks * PANEL, outputs, y.at + row * y.row_floats, y.row_floats, rows, 1);
}

void low_rank(Rows x, const float *a, const float *b, int width, int ranks, int outputs, Rows y, int first, int last,
              float *scratch) {
  int row = first;
  for (; row + TILE <= last; row += TILE) tile(x, a, b, width, ranks, outputs, y, row, TILE, scratch);
  for (; row < last; row++) tile(x, a, b, width, ranks, outputs, y, row, 1, scratch);
}
