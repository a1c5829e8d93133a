// The worker of disposal.py: opens a session, takes a step and closes it, as many times as it is told.

import { open } from "/session.js";

// Each file comes once: the inspector by which the browser is driven keeps what a renderer fetches, 0.23 MB a load.
const kept = new Map();
const { fetch } = self;
self.fetch = async (asked) => {
  const address = String(asked); // Or each URL would be another key.
  if (!kept.has(address)) {
    const response = await fetch(address);
    kept.set(address, { bytes: await response.arrayBuffer(), type: response.headers.get("Content-Type") });
  }
  const { bytes, type } = kept.get(address);
  return new Response(bytes, { headers: { "Content-Type": type } });
};

const CHOICE = { webgpu: { chunk: 24 }, cpu: { threads: 2 }, wasm: {} };

onmessage = ({ data: { runtime, times } }) => cycle(runtime, times).then(
  () => postMessage(""),
  (error) => postMessage(`${error.name}: ${error.message}`),
);

async function cycle(runtime, times) {
  for (let i = 0; i < times; i += 1) {
    const session = await open("/models/tiny", runtime, CHOICE[runtime]);
    await session.step(Int32Array.of(5, 6, 7));
    await session.close();
  }
  for (let i = 0; i < 3; i += 1) { // What one collection finalizes, the next one frees.
    gc();
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}
