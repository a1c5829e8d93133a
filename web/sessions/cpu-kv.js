// The KV cache of the CPU session as bytes, so that the opening of a conversation outlives a visit. Only whole panels
// are copied (kernels/attention.h), packed, so that the bytes do not depend on the context the memory was laid out for.

import { SPAN } from "./cpu-link.js";

const PANEL = 32; // Positions that are copied together: whole panels of keys (8) and pairs of values.

/** [address, bytes] of all that holds the first `length` positions, in a fixed order. */
function* pieces(plan, map, length) {
  const end = Math.ceil(length / PANEL) * PANEL;
  for (let start = 0; start < end; start += SPAN) {
    const positions = Math.min(SPAN, end - start);
    const span = (start / SPAN) * map.spanBytes;
    for (const [index, { kv_heads, head_dim }] of plan.caches.entries()) {
      const { keys, keyScale, values, valueScale } = map.caches[index];
      for (let first = 0; first < kv_heads * SPAN; first += SPAN) {
        yield [span + keys + first * head_dim * 2, positions * head_dim * 2];
        yield [span + keyScale + first * 4, positions * 4];
        yield [span + valueScale + first * 4, positions * 4];
        for (let dim = 0; dim < head_dim; dim += 8) {
          yield [span + values + (first * head_dim + dim * SPAN) * 2, positions * 16];
        }
      }
    }
  }
}

/** The first `length` positions of the KV cache in `memory`, as bytes of their own. */
export function copyOut(plan, map, memory, length) {
  const all = [...pieces(plan, map, length)];
  const copy = new Uint8Array(all.reduce((sum, [, bytes]) => sum + bytes, 0));
  let done = 0;
  for (const [at, bytes] of all) {
    copy.set(new Uint8Array(memory.buffer, at, bytes), done);
    done += bytes;
  }
  return copy;
}

/** Put `copy` (of copyOut, for the same plan and `length`) back; false, and nothing touched, if its size is another. */
export function copyIn(plan, map, memory, length, copy) {
  const all = [...pieces(plan, map, length)];
  if (copy.length !== all.reduce((sum, [, bytes]) => sum + bytes, 0)) return false;
  let done = 0;
  for (const [at, bytes] of all) {
    new Uint8Array(memory.buffer, at, bytes).set(copy.subarray(done, done + bytes));
    done += bytes;
  }
  return true;
}
