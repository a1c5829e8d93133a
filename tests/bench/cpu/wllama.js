// Times wllama (llama.cpp in WebAssembly) on the model's GGUF, with the answers that worker.js gives for one stop. It
// starts workers of its own, so it runs in the page.

import { Wllama } from "/peers/@wllama/wllama/esm/index.min.js";

let model;

export async function begin() {
  const started = performance.now();
  model = new Wllama({ default: "/peers/@wllama/wllama/esm/wasm/wllama.wasm" }, { suppressNativeLog: true });
  const blob = await (await fetch("/gguf/model.gguf")).blob();
  await model.loadModel([blob], { n_ctx: 1024, n_threads: 1, n_gpu_layers: 0 });
  return { seconds: (performance.now() - started) / 1000, runtime: `${model.getNumThreads()} thread` };
}

export async function run({ text, at, tokens }) {
  const started = performance.now();
  const times = [];
  await model.createCompletion({
    prompt: text, max_tokens: tokens, temperature: 0, stream: true, cache_prompt: false,
    onData: () => times.push(performance.now()),
  });
  const steps = times.slice(1).map((time, i) => time - times[i]).sort((a, b) => a - b);
  return [{ at, seconds: (times[0] - started) / 1000, milliseconds: steps[steps.length >> 1] ?? 0, output: [] }];
}
