// Runs web/sessions/cpu.js under Node: node run.mjs REQUEST.json, where the request lists cases: a model's folder,
// its manifest and the steps to do. Writes one JSON document per line, one for each case, into the file that the request
// names for answers. A request with `live`, one such case without steps, then takes one step per line of stdin and
// answers each on stdout, until stdin ends.

import fs from "node:fs/promises";
import { openSync, readFileSync, writeSync } from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { Worker as NodeWorker } from "node:worker_threads";

globalThis.self = globalThis;
globalThis.navigator ??= {}; // Node 20 has none; nor has it anything in OPFS.
globalThis.fetch = async (url) => new Response(await fs.readFile(url));

const workers = [];
let manner = ""; // Of helpers: "dying" ones take a task and die, "late" ones begin when told to, "absent" ones never come up.

/** A browser's module worker on top of Node's. */
globalThis.Worker = class {
  constructor(asked) {
    const isHelper = String(asked).endsWith("cpu-pool.js");
    const url = manner === "dying" && isHelper ? new URL("dying.mjs", import.meta.url) : asked;
    this.manner = isHelper ? manner : "";
    const code = `
      const { parentPort } = require("node:worker_threads");
      globalThis.self = globalThis;
      self.postMessage = (data) => parentPort.postMessage(data);
      const ready = import(${JSON.stringify(String(url))});
      parentPort.on("message", async (data) => { await ready; self.onmessage({ data }); });`;
    this.inner = new NodeWorker(code, { eval: true });
    workers.push(this);
    this.inner.on("message", (data) => this.onmessage?.({ data }));
    this.inner.on("error", (error) => this.onerror?.(error));
  }

  postMessage(data) {
    if (this.manner === "absent") this.onerror({ message: "absent" });
    else if (this.manner === "late") {
      this.job = data;
      this.onmessage({ data: "ready" });
    } else this.inner.postMessage(data);
  }

  terminate() {
    this.isOver = true;
    this.inner.terminate();
  }
};

const Memory = WebAssembly.Memory;
let limits = {}; // `pages`: most that a memory may have or come to have; `shared`: false where none can be shared.

WebAssembly.Memory = function (size) {
  if (Math.max(size.initial, size.maximum ?? 0) > (limits.pages ?? Infinity) || (size.shared && limits.shared === false)) {
    throw new RangeError("WebAssembly.Memory(): could not allocate memory");
  }
  return new Memory(size);
};

const nothing = { ids: new Int32Array(0), logits: new Float32Array(0) }; // Of a step that failed, as it was to.
let snapshot; // The latest one; a later case may restore it.

const request = JSON.parse(readFileSync(process.argv[2], "utf8"));
const { open } = await import(pathToFileURL(request.session).href);
const { KeptFiles, MemoryFiles, source } = await import(new URL("../files.js", pathToFileURL(request.session)).href);
const base64 = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
const say = (message) => writeSync(answers, `${JSON.stringify(message)}\n`);
const answers = request.answers && openSync(request.answers, "w");

/** The files of a folder, as files.js gives those of a model; `downloaded` where they came into memory, with no place
 * ("memory") or with one that has lost them ("place"). */
async function filesOf(folder, manifest, downloaded) {
  const read = async (name) => new Uint8Array(await fs.readFile(path.join(folder, name)));
  if (!downloaded) return { read, open: async (name) => source(name, await read(name)), letGo() {} };
  const entries = manifest.files;
  const files = downloaded === "memory" ? new MemoryFiles(new Map()) : new KeptFiles({ entries, base: "http://x/", where: "opfs" });
  for (const { name } of entries) files.add(name, await read(name));
  return files;
}

const openCase = async ({ folder, manifest, choice, base }, files) => open({
  manifest,
  files: files ?? await filesOf(folder),
  base: pathToFileURL(`${base ?? request.base}/`).href,
  onProgress: () => {},
  choice,
});

async function serve(one) {
  const session = await openCase(one);
  for await (const line of createInterface({ input: process.stdin })) {
    const { ids, positions, rewind, adapter } = JSON.parse(line);
    if (adapter !== undefined) await session.adapter(adapter);
    if (rewind !== undefined) session.rewind(rewind);
    const top = await session.step(Int32Array.from(ids), positions);
    writeSync(1, `${JSON.stringify({ ids: [...top.ids], logits: [...top.logits] })}\n`);
  }
}

async function run(one) {
  const { steps, kill } = one;
  manner = one.helpers ?? "";
  limits = one.limits ?? {};
  const files = await filesOf(one.folder, one.manifest, one.downloaded);
  const session = await openCase(one, files);
  if (kill) await Promise.all(workers.map((worker) => worker.inner.terminate()));
  const { context, chunk, runtime, bytes, kernels, drafts } = session;
  const info = { context, chunk, runtime, bytes, kernels, drafts };
  if (one.downloaded) info.files = [...(files.files ?? files.added).keys()].sort();
  const done = [];
  for (const step of steps) {
    if (step.snapshot !== undefined) snapshot = session.snapshot(step.snapshot);
    if (step.adapter !== undefined) await session.adapter(step.adapter);
    if (step.rewind !== undefined) session.rewind(step.rewind);
    const restored = step.restore && session.restore(snapshot.subarray(step.restore.skip ?? 0), step.restore.ids);
    const positions = step.positions ?? 1;
    const started = performance.now();
    const stepping = session.step(Int32Array.from(step.ids), positions);
    const top = await (step.fails ? stepping.catch(() => nothing) : stepping);
    const seconds = (performance.now() - started) / 1000;
    const logits = Array.from({ length: step.logits ? positions : 0 }, (_, i) => base64(session.logits(i)));
    if (step.adapt_after !== undefined) await session.adapter(step.adapt_after);
    done.push({ ids: base64(top.ids), logits: base64(top.logits), all: logits, seconds, restored });
  }
  if (manner === "late") info.claimed = await wakeLate();
  info.at_last = session.runtime;
  session.close();
  return { info, done };
}

/** Let the late helpers begin; how many tickets (web/kernels/engine.c) they have written on a moment later. */
async function wakeLate() {
  const [{ job: { memory, state } }] = workers.filter((worker) => worker.job && !worker.isOver);
  const words = new Int32Array(memory.buffer, state);
  const tickets = () => Int32Array.from(new Int32Array(memory.buffer, words[7], words[5] * 4));
  const before = tickets();
  for (const worker of workers) if (worker.job) worker.inner.postMessage(worker.job);
  await new Promise((resolve) => setTimeout(resolve, 500));
  return tickets().filter((word, i) => word !== before[i]).length;
}

if (request.live) await serve(request.live);
for (const one of request.cases ?? []) {
  const told = await run(one).catch((error) => ({ fault: error.fault ?? error.name, detail: error.message }));
  say({ ...told, left: workers.filter((worker) => !worker.isOver).length });
  workers.length = 0;
}
process.exit(0);
