// Which model, on which runtime, with how much context: one pure function from the facts (facts.js) to the choice.

import { LEAST_CONTEXT } from "./session.js";

const GIB = 2 ** 30;
const MEMORY = 4 * GIB; // Assumed where the browser does not say, as Firefox and Safari do not.
const SHARE = 0.5; // Of the device's memory, for one tab: past that, systems begin to kill tabs.
const WASM_BYTES = 4 * GIB - 2 ** 28; // 32-bit addresses, less what code and activations take.
const KV_BYTES = GIB; // Most that a KV cache takes, so that a long context does not starve everything else.
const UNASKED_BYTES = GIB; // The largest download that begins without having been asked for.
const CHUNK = { cpu: 128, wasm: 64, webgpu: 256 }; // Tokens of prompt between two looks at Stop: two seconds at worst.

/** Most bytes that open weights take for each byte of shards: float16 and 6 bit scales and offsets become float32. */
const OPENED = 1.25;

/** Bytes of weights that a runtime reads in an eighth of a second (measured on 2 cores, tests/bench): 8 tokens/s. */
const SMOOTH = { webgpu: Infinity, cpu: GIB, wasm: GIB / 40 };

/**
 * The choice for this device: {slug, why, sessions, runtimes, warning, refusal, dropped, offers}.
 *
 * `facts`: adapter (null, or {kind: "software" or "hardware", largest: bytes of its largest buffer, wrong: sha256 of
 * graphs that it computed wrongly before}), jspi (WebAssembly can suspend), isolated (threads are allowed), cores,
 * memory and room (bytes of memory and of storage for this site, null where unknown), simd (WebAssembly has it, as in
 * every browser since 2023), int4 (the site has our own kernels), frugal (the visitor asked for little traffic).
 * `models`: the site's manifests, in its order. `wish`: {model, runtime}, each "" for the best.
 *
 * `why`: "asked", "only", "best" (the largest that runs smoothly here; of those above half its size, the one that the
 * site names first) or "smallest" (none does). `sessions` (see there): what to try in turn, none if the model is refused;
 * `refusal` and `dropped` are theirs. `warning`: "storage" where the model will have to be downloaded at each visit, ""
 * otherwise. `runtimes`: names of those that the visitor may ask for. `offers`: {slug, title, bytes, refusal} of every
 * model.
 */
export function choose(facts, models, wish = { model: "", runtime: "" }) {
  const offers = models.map((manifest) => offer(facts, manifest, wish.runtime));
  const open = offers.filter(({ refusal }) => !refusal);
  const good = open.filter((one) => one.smooth && one.kept && one.bytes <= UNASKED_BYTES && !facts.frugal);
  const largest = Math.max(...good.map(({ bytes }) => bytes));
  const best = good.find(({ bytes }) => 2 * bytes > largest);
  const smallest = open.reduce((one, other) => (other.bytes < one.bytes ? other : one), open[0]);
  const asked = wish.model ? offers.find(({ slug }) => slug === wish.model) : null;
  const chosen = wish.model ? asked : best ?? smallest ?? offers[0];
  if (!chosen) {
    const none = { sessions: [], runtimes: [], warning: "", refusal: "absent", dropped: "" };
    return { slug: wish.model, why: "asked", ...none, offers };
  }
  const why = asked ? "asked" : models.length === 1 ? "only" : chosen === best ? "best" : "smallest";
  return {
    slug: chosen.slug, why, sessions: chosen.sessions, refusal: chosen.refusal, dropped: chosen.dropped,
    runtimes: runtimes(facts, models.find(({ slug }) => slug === chosen.slug), wish.runtime),
    warning: chosen.refusal || chosen.kept ? "" : "storage",
    offers: offers.map(({ slug, title, bytes, refusal }) => ({ slug, title, bytes, refusal })),
  };
}

/** Runtimes worth asking for by name. One in software is not, unless it has been. */
function runtimes(facts, manifest, forced) {
  const slow = facts.adapter?.kind === "software" && forced !== "webgpu";
  const names = slow ? ["cpu", "wasm"] : ["webgpu", "cpu", "wasm"];
  return names.filter((name) => sessions(facts, manifest, name).list.length > 0);
}

function offer(facts, manifest, runtime) {
  const { list, refusal, dropped } = sessions(facts, manifest, runtime);
  const bytes = sum(needed(manifest, list[0]));
  return {
    slug: manifest.slug, title: manifest.title, sessions: list, refusal, dropped, bytes,
    kept: facts.room === null || bytes <= facts.room,
    smooth: list.length > 0 && weightBytes(manifest) <= SMOOTH[list[0].name],
  };
}

/**
 * The sessions to try for one model, best first: {list, refusal, dropped}.
 *
 * Each of `list` is {name, module, build, graph, threads, context, chunk}; `context` and `chunk` count tokens.
 * A software adapter is slower than the processor itself, so it has to be forced. `refusal`, where the list is empty:
 * "browser" (without SIMD no runtime starts), "runtime" (nothing here runs it) or "memory" (it does not fit). `dropped`:
 * "wrong" where the graphics chip is left out because it computed this model wrongly before.
 */
export function sessions(facts, manifest, forced = "") {
  if (!facts.simd) return { list: [], refusal: "browser", dropped: "" };
  const threads = facts.isolated ? useful(facts.cores) : 1;
  const graph = manifest.files.find(({ name }) => name === manifest.graphs.webgpu);
  const graphics = facts.adapter?.kind === "hardware" || (facts.adapter && forced === "webgpu");
  const wrong = graphics && graph && forced !== "webgpu" && facts.adapter.wrong.includes(graph.sha256);
  const all = [
    graphics && graph && !wrong && {
      name: "webgpu", module: "webgpu.js", build: facts.jspi ? "jspi" : "webgpu", graph: "webgpu", threads: 1,
    },
    facts.int4 && manifest.plan && {
      name: "cpu", module: "cpu.js", build: "", graph: "", threads,
    },
    manifest.graphs.wasm && {
      name: "wasm", module: "ort.js", build: "wasm", graph: "wasm", threads,
    },
  ].filter((session) => session && (!forced || session.name === forced));
  const list = all
    .map((session) => ({ ...session, context: roomFor(facts, manifest, session.name) }))
    .filter(({ context }) => context > 0)
    .map((session) => ({ ...session, chunk: chunkFor(facts, manifest, session) }));
  const refusal = list.length ? "" : all.length ? "memory" : "runtime";
  return { list, refusal, dropped: wrong ? "wrong" : "" };
}

/** The manifest's entries ({name, bytes, sha256}) that `session` reads to open: its graph or plan, weights and tokenizer. */
export function needed(manifest, session) {
  const own = session?.graph ? manifest.graphs[session.graph] : manifest.plan;
  const names = new Set([own, manifest.tokenizer, ...manifest.weights]);
  return manifest.files.filter((entry) => names.has(entry.name));
}

/** The session that takes over where the first of `sessions` loses its graphics chip, in a list; else an empty one. */
export const fallback = (sessions) => (sessions[0]?.name === "webgpu" ? sessions.slice(1, 2) : []);

/** The manifest's entries that the fallback of `sessions` reads and the first of them does not. */
export function spare(manifest, sessions) {
  const own = needed(manifest, sessions[0]);
  return fallback(sessions).flatMap((next) => needed(manifest, next)).filter((entry) => !own.includes(entry));
}

const BINARIES = { wasm: "", jspi: ".jspi", webgpu: ".asyncify" };

/** The files of ONNX Runtime Web that `session` loads, by their names on the site; none for our own kernels. */
export function ortFiles({ build }) {
  if (!build) return [];
  const binary = `ort/ort-wasm-simd-threaded${BINARIES[build]}`;
  return [`ort/ort.${build}.min.mjs`, `${binary}.mjs`, `${binary}.wasm`];
}

/** The entries of the manifest's adapters: each is fetched when a visitor first chooses it. */
export function adapterEntries(manifest) {
  const names = new Set((manifest.adapters ?? []).map(({ file }) => file));
  return manifest.files.filter((entry) => names.has(entry.name));
}

/** Tokens of context for which the model fits: its own context, else a half of it, a quarter …; 0 if none fits. */
function roomFor(facts, manifest, runtime) {
  const { kv, architecture } = manifest;
  const weights = weightBytes(manifest);
  const share = SHARE * (facts.memory ?? MEMORY);
  const perToken = 2 * kv.layers * kv.kv_heads * kv.head_dim;
  const fits = {
    // Buffers are of one tensor each: a layer's keys, or the largest matrix, which has a shard of its own. While ORT opens
    // the graph all weights lie here as files, and on the device as it opens them; there may be one memory for both.
    webgpu: (context) => {
      const cache = 4 * perToken * context;
      const widest = Math.max(largestShard(manifest), cache / (2 * kv.layers));
      return widest <= facts.adapter.largest && cache <= KV_BYTES && (1 + OPENED) * weights + cache <= share;
    },
    // Keys and values are int16, with an eighth for what goes with them. Other formats than K take what the file takes.
    cpu: (context) => OPENED * weights + 2.25 * perToken * context <= Math.min(share, WASM_BYTES),
    // Weights once as files and once inside; for a moment the KV cache of this step and of the last.
    wasm: (context) => 2 * weights + 8 * perToken * context <= Math.min(share, WASM_BYTES),
  }[runtime];
  for (let context = architecture.context; ; context = Math.floor(context / 2)) {
    if (fits(context)) return context;
    if (context / 2 < LEAST_CONTEXT) return 0;
  }
}

/** Tokens a step: on a graphics chip, halved until one layer's attention scores and widest activations fit a buffer. */
function chunkFor(facts, { architecture }, { name, context }) {
  let chunk = Math.min(CHUNK[name], context);
  const widest = Math.max(architecture.heads * context, 8 * architecture.hidden);
  while (name === "webgpu" && chunk > 1 && 4 * chunk * widest > facts.adapter.largest) chunk = Math.floor(chunk / 2);
  return chunk;
}

/** Threads worth starting: all of few cores; of many, half, because a browser counts hyper-threads as cores. */
function useful(cores) {
  return cores <= 4 ? Math.max(1, cores) : Math.min(8, cores >> 1);
}

const sum = (entries) => entries.reduce((total, { bytes }) => total + bytes, 0);
const shards = ({ files, weights }) => files.filter(({ name }) => weights.includes(name));
const weightBytes = (manifest) => sum(shards(manifest));

/** A shard over 64 MiB holds one tensor; smaller ones hold tensors that any device takes. */
const largestShard = (manifest) => Math.max(...shards(manifest).map(({ bytes }) => bytes));
