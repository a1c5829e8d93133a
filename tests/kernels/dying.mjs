// Stands in for web/sessions/cpu-pool.js: a helper thread that claims the last task of the first step it can, and dies
// holding it. The words are those of State and Ticket in web/kernels/engine.c.

const COUNT = 5;
const TICKETS = 7;
const TICKET_BYTES = 16;

self.onmessage = ({ data: { memory, state } }) => {
  const words = new Int32Array(memory.buffer, state);
  const last = words[TICKETS] + (words[COUNT] - 1) * TICKET_BYTES;
  const next = new BigInt64Array(memory.buffer, last, 1);
  self.postMessage("ready");
  for (;;) { // A ticket nobody has claimed yet: a step's number, and no task.
    const seen = Atomics.load(next, 0);
    if (seen > 0n && (seen & 0xffffffffn) === 0n && Atomics.compareExchange(next, 0, seen, seen + 1n) === seen) return;
  }
};
