// Drives a session module of web/sessions on a bare page: opens a model, runs steps, counts what the device is asked.

import { source } from "/files.js";

const counts = { dispatches: 0, mapped: 0, mappings: 0, copied: 0, buffers: 0, submits: 0 };
const living = new Map(); // GPU buffers that were not destroyed, with size and device.

function wrap(prototype, name, note) {
  const original = prototype[name];
  prototype[name] = function (...values) {
    const result = original.apply(this, values);
    note(this, values, result);
    return result;
  };
}

let shared = null; // The device of all sessions from now on.

const memories = []; // Weakly held, so that a closed session's can go.
WebAssembly.Memory = class extends WebAssembly.Memory {
  constructor(size) {
    super(size);
    memories.push(new WeakRef(this));
  }
};

if (globalThis.GPUBuffer) {
  wrap(GPUComputePassEncoder.prototype, "dispatchWorkgroups", () => (counts.dispatches += 1));
  wrap(GPUComputePassEncoder.prototype, "dispatchWorkgroupsIndirect", () => (counts.dispatches += 1));
  wrap(GPUQueue.prototype, "submit", () => (counts.submits += 1));
  wrap(GPUCommandEncoder.prototype, "copyBufferToBuffer", (_, values) => (counts.copied += values[4] ?? values[2] ?? 0));
  wrap(GPUBuffer.prototype, "mapAsync", (buffer, [mode, , size]) => {
    if (mode !== GPUMapMode.READ) return;
    counts.mappings += 1;
    counts.mapped += size ?? buffer.size;
  });
  wrap(GPUDevice.prototype, "createBuffer", (device, [{ size }], buffer) => {
    counts.buffers += 1;
    living.set(buffer, { size, device });
  });
  wrap(GPUBuffer.prototype, "destroy", (buffer) => living.delete(buffer));
  const request = GPUAdapter.prototype.requestDevice;
  GPUAdapter.prototype.requestDevice = async function (...values) {
    if (shared) return shared;
    const device = (globalThis.device = await request.apply(this, values));
    device.lost.then(() => living.forEach((made, buffer) => made.device === device && living.delete(buffer)));
    return device;
  };
}

/** The manifest at `folder` (of this page's site) and its files. */
export async function model(folder) {
  const fetched = async (name) => {
    const response = await fetch(`${folder}/${name}`);
    if (!response.ok) throw new Error(`${folder}/${name}: ${response.status}`);
    return response;
  };
  const manifest = await (await fetched("manifest.json")).json();
  const read = async (name) => new Uint8Array(await (await fetched(name)).arrayBuffer());
  return { manifest, files: { read, open: async (name) => source(name, await read(name)), letGo() {} } };
}

/**
 * Open `folder` on `runtime` ("webgpu", "wasm", "cpu"); `changes` to the choice and to the manifest's keys. A graph that
 * ORT would not place on the graphics device with every node is refused on WebGPU.
 */
export async function open(folder, runtime, changes = {}, manifestChanges = {}) {
  const { manifest, files } = await model(folder);
  const { sessions } = await import(new URL("/sessions/choose.js", location));
  const facts = {
    adapter: { kind: "software", largest: 2 ** 30, wrong: [] }, jspi: typeof WebAssembly.Suspending === "function",
    isolated: false, cores: 1, memory: null, room: null, simd: true, int4: true, frugal: false,
  };
  const whole = { ...manifest, ...manifestChanges };
  const choice = { ...sessions(facts, whole, runtime).list[0], ...changes };
  const module = await import(new URL(`/sessions/${choice.module}`, location));
  if (runtime === "webgpu") await placeNothingElsewhere(choice.build);
  return module.open({ manifest: whole, files, base: `${location.origin}/`, choice });
}

/** Let ORT's sessions fail where a node would run on the processor. */
async function placeNothingElsewhere(build) {
  const { InferenceSession } = await import(new URL(`/ort/ort.${build}.min.mjs`, location));
  if (InferenceSession.anywhere) return;
  InferenceSession.anywhere = InferenceSession.create;
  const extra = { session: { disable_cpu_ep_fallback: "1" } };
  InferenceSession.create = (model, options) => InferenceSession.anywhere(model, { ...options, extra });
}

/**
 * Run `steps` ({ids, positions?, adapter?, rewind?} or {greedy: tokens}) on an opened session: for each {ids, logits, counts},
 * the candidates of all its positions and what the device was asked meanwhile. A greedy step goes on with the likeliest
 * token of the step before and gives the tokens chosen, with the counts of its last one.
 */
export async function run(session, steps) {
  const answers = [];
  let next = 0;
  for (const step of steps) {
    if (step.adapter !== undefined) await session.adapter(step.adapter);
    if (step.rewind !== undefined) session.rewind(step.rewind);
    let answer;
    const chosen = [];
    const turns = step.greedy ? Array(step.greedy).fill(null) : [step.ids];
    for (const ids of turns) {
      if (step.greedy) chosen.push(next);
      const before = { ...counts };
      const { ids: found, logits } = await session.step(Int32Array.from(ids ?? [next]), step.positions ?? 1);
      const asked = Object.fromEntries(Object.entries(counts).map(([name, value]) => [name, value - before[name]]));
      answer = { ids: Array.from(found), logits: Array.from(logits), counts: asked };
      next = answer.ids[found.length - found.length / (step.positions ?? 1)];
    }
    answers.push(step.greedy ? { ...answer, chosen } : answer);
  }
  return answers;
}

/** Bytes of all WebAssembly memories that were made from JavaScript, ORT's among them. */
export const wasmBytes = () => memories.reduce((total, kept) => total + (kept.deref()?.buffer.byteLength ?? 0), 0);

/** How many GPU buffers of `bytes` there are now. */
export const alive = (bytes) => [...living.values()].filter(({ size }) => size === bytes).length;

/**
 * Give all sessions one device from now on, that of a first one which stays open: ORT then compiles a shader once, and
 * not for every model, which in software takes longer than all else.
 */
export async function share(folder, changes) {
  const first = await open(folder, "webgpu", changes);
  shared = globalThis.device;
  shared.destroy = () => {};
  return first;
}

export { counts };
