// Times web/sessions/cpu.js in a browser's worker. A message {open: {manifest, base, choice}} opens the model; a
// message {prompt, tokens} reads the prompt in chunks from an empty KV cache and decodes greedily; both are answered.

import { open } from "/sessions/cpu.js";

let session;

async function begin({ manifest, base, choice }) {
  const started = performance.now();
  session?.close();
  session = await open({
    manifest, base, choice,
    read: async (name) => new Uint8Array(await (await fetch(`/model/${name}`)).arrayBuffer()),
  });
  const { context, runtime, bytes } = session;
  return { seconds: (performance.now() - started) / 1000, context, runtime, bytes, isolated: self.crossOriginIsolated };
}

async function run({ prompt, tokens }) {
  session.rewind(0);
  const ids = Int32Array.from(prompt);
  const started = performance.now();
  let top;
  for (let done = 0; done < ids.length; done += session.chunk) {
    top = await session.step(ids.subarray(done, done + session.chunk));
  }
  const first = (performance.now() - started) / 1000;
  const output = [top.ids[0]];
  const times = [];
  while (output.length < tokens) {
    const before = performance.now();
    top = await session.step(Int32Array.of(output.at(-1)));
    times.push(performance.now() - before);
    output.push(top.ids[0]);
  }
  times.sort((a, b) => a - b);
  return { first, milliseconds: times[times.length >> 1] ?? 0, output };
}

self.onmessage = async ({ data }) => {
  try {
    self.postMessage(data.open ? await begin(data.open) : await run(data));
  } catch (error) {
    self.postMessage({ fault: error.fault ?? error.name, detail: error.message });
  }
};
