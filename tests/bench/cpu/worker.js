// Times web/sessions/cpu.js in a browser's worker. A message {open: {manifest, base, choice}} opens the model; a
// message {prompt, stops, tokens} reads the prompt from an empty KV cache in chunks, and at each stop (a number of
// tokens) decodes greedily, then goes back to it and reads on. Answered with {at, seconds, milliseconds, output} a stop:
// `seconds` to read since the stop before, the median `milliseconds` of a decoded token. A message {score: ids} is
// answered with {top, loss}: at every position the likeliest next token, and the cross-entropy of the one that came.

import { source } from "/files.js";
import { open } from "/sessions/cpu.js";

let session;

const read = async (name) => new Uint8Array(await (await fetch(`/model/${name}`)).arrayBuffer());
const files = { read, open: async (name) => source(name, await read(name)), letGo() {} };

async function begin({ manifest, base, choice }) {
  const started = performance.now();
  session = await open({ manifest, base, choice, files });
  const { context, runtime, bytes } = session;
  return { seconds: (performance.now() - started) / 1000, context, runtime, bytes, isolated: self.crossOriginIsolated };
}

async function run({ prompt, stops, tokens }) {
  session.rewind(0);
  const ids = Int32Array.from(prompt);
  const points = [];
  for (const at of stops) {
    const started = performance.now();
    let top;
    while (session.length < at) {
      top = await session.step(ids.subarray(session.length, Math.min(session.length + session.chunk, at)));
    }
    const seconds = (performance.now() - started) / 1000;
    points.push({ at, seconds, ...await decode(top, tokens) });
    session.rewind(at);
  }
  return points;
}

async function decode(top, tokens) {
  const output = [top.ids[0]];
  const times = [];
  while (output.length < tokens) {
    const before = performance.now();
    top = await session.step(Int32Array.of(output.at(-1)));
    times.push(performance.now() - before);
    output.push(top.ids[0]);
  }
  times.sort((a, b) => a - b);
  return { milliseconds: times[times.length >> 1] ?? 0, output };
}

async function score(ids) {
  session.rewind(0);
  const top = [];
  const loss = [];
  while (session.length < ids.length) {
    const first = session.length;
    const step = Int32Array.from(ids.slice(first, first + 16));
    const { ids: candidates } = await session.step(step, step.length);
    for (let i = 0; i < step.length; i++) {
      top.push(candidates[i * (candidates.length / step.length)]);
      if (first + i + 1 < ids.length) loss.push(crossEntropy(session.logits(i), ids[first + i + 1]));
    }
  }
  return { top, loss };
}

function crossEntropy(logits, token) {
  const most = logits.reduce((a, b) => Math.max(a, b));
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - most);
  return Math.log(sum) + most - logits[token];
}

self.onmessage = async ({ data }) => {
  try {
    self.postMessage(data.open ? await begin(data.open) : data.score ? await score(data.score) : await run(data));
  } catch (error) {
    self.postMessage({ fault: error.fault ?? error.name, detail: error.message });
  }
};
