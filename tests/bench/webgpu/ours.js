// Handbill's WebGPU session: {begin() → {seconds, chunk, context}, run({ids, tokens}) → what a prompt and its answer take}.

import { counts, open } from "/session.js";
import { perToken } from "./per-token.js";

let session;

export async function begin() {
  const started = performance.now();
  session = await open("/models/model", "webgpu");
  return { seconds: (performance.now() - started) / 1000, chunk: session.chunk, context: session.context };
}

/** Read `ids` from an empty KV cache, then decode greedily: seconds to the first token, and medians for a token. */
export async function run({ ids, tokens }) {
  const prompt = Int32Array.from(ids);
  session.rewind(0);
  const started = performance.now();
  let top;
  while (session.length < prompt.length) {
    top = await session.step(prompt.subarray(session.length, session.length + session.chunk));
  }
  const marks = [{ time: performance.now(), ...counts }];
  const seconds = (marks[0].time - started) / 1000;
  const output = [top.ids[0]];
  while (output.length < tokens) {
    top = await session.step(Int32Array.of(output.at(-1)));
    marks.push({ time: performance.now(), ...counts });
    output.push(top.ids[0]);
  }
  return { seconds, output, ...perToken(marks) };
}
