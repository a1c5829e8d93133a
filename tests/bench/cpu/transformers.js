// Times transformers.js on the folder that q8.py makes, with the answers that worker.js gives for one stop. In the page,
// because its modules are found by the import map of blank.html and workers have none.

import { AutoModelForCausalLM, Tensor, env } from "/peers/@huggingface/transformers/dist/transformers.web.js";

let model;

export async function begin() {
  const started = performance.now();
  Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: "/q8/" });
  Object.assign(env, { useBrowserCache: false, useWasmCache: false });
  env.backends.onnx.wasm.wasmPaths = `${location.origin}/peers/onnxruntime-web/dist/`;
  env.backends.onnx.wasm.numThreads = 1;
  model = await AutoModelForCausalLM.from_pretrained("smollm2-135m-q8", { dtype: "q8", device: "wasm" });
  return { seconds: (performance.now() - started) / 1000, runtime: `${env.backends.onnx.wasm.numThreads} thread` };
}

export async function run({ ids, at, tokens }) {
  const shape = [1, ids.length];
  const times = [];
  const output = [];
  const streamer = {
    put([batch]) {
      times.push(performance.now());
      output.push(...batch.map(Number));
    },
    end() {},
  };
  const started = performance.now();
  await model.generate({
    input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), shape),
    attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape),
    max_new_tokens: tokens, do_sample: false, streamer,
  });
  times.shift(); // The streamer is given the prompt first.
  const steps = times.slice(1).map((time, i) => time - times[i]).sort((a, b) => a - b);
  const milliseconds = steps[steps.length >> 1] ?? 0;
  return [{ at, seconds: (times[0] - started) / 1000, milliseconds, output: output.slice(ids.length) }];
}
