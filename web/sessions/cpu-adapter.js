// Adapters in the CPU session's memory: the plan's low_rank operations get the A and B of the one in use, and a rank of
// 0 where there is none, which the kernels step over.

import { Fault } from "../fault.js";
import { A, B } from "./adapter.js";
import { PANEL } from "./cpu-link.js";

/** Put `tensors` (adapter.js) into the branches of `map` (cpu-link.js); none of them is the base. Throws Fault manifest. */
export function putAdapter(map, memory, tensors) {
  for (const { matrix, columns, rows, rank } of map.branches) {
    const [a, b] = [tensors.get(matrix + A), tensors.get(matrix + B)];
    const fits = a && b && a.shape[0] === columns && b.shape[1] === rows && a.shape[1] === b.shape[0] && a.shape[1] <= rank;
    if ((a || b) && !fits) throw new Fault("manifest", `An adapter does not fit ${matrix}; export the model again.`);
  }
  for (const branch of map.branches) {
    const [a, b] = [tensors.get(branch.matrix + A), tensors.get(branch.matrix + B)];
    const ranks = a ? Math.ceil(a.shape[1] / PANEL) : 0;
    new Int32Array(memory.buffer)[map.ops / 4 + branch.word] = ranks;
    if (!a) continue;
    pack(a, branch.columns, new Float32Array(memory.buffer, branch.a, ranks * branch.columns * PANEL));
    const outputs = Math.ceil(branch.rows / PANEL);
    pack(b, ranks * PANEL, new Float32Array(memory.buffer, branch.b, outputs * ranks * PANEL * PANEL));
  }
}

/** `tensor` as kernels/low_rank.h wants it: panels of 8 columns, [inputs][8] each, zeros beyond its shape. */
function pack({ shape: [rows, columns], values }, inputs, target) {
  target.fill(0);
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const panel = Math.floor(column / PANEL);
      target[(panel * inputs + row) * PANEL + (column % PANEL)] = values[row * columns + column];
    }
  }
}
