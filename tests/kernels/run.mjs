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
globalThis.fetch = async (url) => new Response(await fs.readFile(url));

const workers = [];

/** A browser's module worker on top of Node's. */
globalThis.Worker = class {
  constructor(url) {
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
    this.inner.postMessage(data);
  }

  terminate() {
    this.inner.terminate();
  }
};

let snapshot; // The latest one; a later case may restore it.

const request = JSON.parse(readFileSync(process.argv[2], "utf8"));
const { open } = await import(pathToFileURL(request.session).href);
const { source } = await import(new URL("../files.js", pathToFileURL(request.session)).href);
const base64 = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
const say = (message) => writeSync(answers, `${JSON.stringify(message)}\n`);
const answers = request.answers && openSync(request.answers, "w");

/** The files of a folder, as files.js gives those of a model. */
function filesOf(folder) {
  const read = async (name) => new Uint8Array(await fs.readFile(path.join(folder, name)));
  return { read, open: async (name) => source(name, await read(name)) };
}

const openCase = ({ folder, manifest, choice }) => open({
  manifest,
  files: filesOf(folder),
  base: pathToFileURL(`${request.base}/`).href,
  onProgress: () => {},
  choice,
});

async function serve(one) {
  const session = await openCase(one);
  for await (const line of createInterface({ input: process.stdin })) {
    const { ids, positions, rewind } = JSON.parse(line);
    if (rewind !== undefined) session.rewind(rewind);
    const top = await session.step(Int32Array.from(ids), positions);
    writeSync(1, `${JSON.stringify({ ids: [...top.ids], logits: [...top.logits] })}\n`);
  }
}

async function run(one) {
  const { steps, kill } = one;
  const session = await openCase(one);
  if (kill) await Promise.all(workers.map((worker) => worker.inner.terminate()));
  const info = { context: session.context, chunk: session.chunk, runtime: session.runtime, bytes: session.bytes };
  const done = [];
  for (const step of steps) {
    if (step.snapshot !== undefined) snapshot = session.snapshot(step.snapshot);
    if (step.rewind !== undefined) session.rewind(step.rewind);
    const restored = step.restore && session.restore(snapshot.subarray(step.restore.skip ?? 0), step.restore.length);
    const positions = step.positions ?? 1;
    const started = performance.now();
    const top = await session.step(Int32Array.from(step.ids), positions);
    const seconds = (performance.now() - started) / 1000;
    const logits = Array.from({ length: step.logits ? positions : 0 }, (_, i) => base64(session.logits(i)));
    done.push({ ids: base64(top.ids), logits: base64(top.logits), all: logits, seconds, restored });
  }
  session.close();
  return { info, done };
}

if (request.live) await serve(request.live);
for (const one of request.cases ?? []) {
  say(await run(one).catch((error) => ({ fault: error.fault ?? error.name, detail: error.message })));
}
process.exit(0);
