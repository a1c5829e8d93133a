// transformers.js on WebGPU, on the folder that peer_model.py makes, with the answers that ours.js gives.

import { counts } from "/session.js"; // First: it counts what is asked of WebGPU from here on.
import { perToken } from "./per-token.js";
import { AutoModelForCausalLM, Tensor, env } from "/peers/@huggingface/transformers/dist/transformers.web.js";

let model;

export async function begin() {
  const started = performance.now();
  Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: "/q4/" });
  Object.assign(env, { useBrowserCache: false, useWasmCache: false });
  env.backends.onnx.wasm.wasmPaths = `${location.origin}/peers/onnxruntime-web/dist/`;
  model = await AutoModelForCausalLM.from_pretrained("model", { dtype: "q4", device: "webgpu" });
  return { seconds: (performance.now() - started) / 1000 };
}

export async function run({ ids, tokens }) {
  const shape = [1, ids.length];
  const marks = [];
  const output = [];
  const streamer = {
    put([batch]) {
      marks.push({ time: performance.now(), ...counts });
      output.push(...batch.map(Number));
    },
    end() {},
  };
  const started = performance.now();
  await model.generate({
    input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), shape),
    attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape),
    max_new_tokens: tokens, do_sample: false, eos_token_id: -1, streamer,
  });
  marks.shift(); // The streamer is given the prompt first.
  return { seconds: (marks[0].time - started) / 1000, output: output.slice(ids.length), ...perToken(marks) };
}
