/* How many products a second this browser gets out of i32x4.dot_i16x8_s: a loop of nothing else. */
#include <stdint.h>
#include <wasm_simd128.h>

enum { ROWS = 3, COLUMNS = 2, LENGTH = 64 }; /* sums, operands and what is in flight fit into 16 registers */
int16_t operands[(LENGTH * COLUMNS + ROWS) * 8]; /* their values do not matter to the time */

/* Products of one round: eight to an instruction. */
int __attribute__((export_name("products"))) products(void) { return LENGTH * ROWS * COLUMNS * 8; }

/* `rounds` rounds; what they sum up to is returned, so that none is left out. */
int __attribute__((export_name("run"))) run(int rounds) {
  const v128_t *weights = (const v128_t *)operands, *rows = weights + LENGTH * COLUMNS;
  v128_t sums[ROWS][COLUMNS] = {0}, total = wasm_i32x4_splat(0);
  for (int round = 0; round < rounds; round++) {
#pragma clang loop unroll_count(4)
    for (int i = 0; i < LENGTH; i++)
#pragma clang loop unroll(full)
      for (int column = 0; column < COLUMNS; column++)
#pragma clang loop unroll(full)
        for (int row = 0; row < ROWS; row++)
          sums[row][column] = wasm_i32x4_add(wasm_i32x4_dot_i16x8(rows[row], weights[i * COLUMNS + column]), sums[row][column]);
  }
  for (int row = 0; row < ROWS; row++)
    for (int column = 0; column < COLUMNS; column++) total = wasm_i32x4_add(total, sums[row][column]);
  return wasm_i32x4_extract_lane(total, 0) + wasm_i32x4_extract_lane(total, 1);
}
