// A model in the engine's worker: its verified files, its tokenizer and the session that runs it.
// python.mjs begins it while Python boots, engine.py takes it over through PyScript's js_modules; nothing here knows of
// Python or of the page.

import { MemoryPart, download, fetchText } from "./download.js";
import { Fault, asFault } from "./fault.js";
import { KeptFiles, MemoryFiles } from "./files.js";
import { InsideFiles } from "./inside.js";
import { Meter } from "./meter.js";
import { openOpenings as openings } from "./openings.js";
import { twice } from "./patience.js";
import { adapterEntries, needed } from "./sessions/choose.js";
import { openFirst } from "./sessions/enduring.js";
import { judge } from "./sessions/facts.js";

export const BASE = new URL("./", import.meta.url);

let begun = null;

/** Begin to open a model before anybody asked for it; `model` hands it out. */
export function begin(channel, slug, runtime) {
  begun = new Model(channel, slug, runtime);
}

/** The model `slug` ("" for what the store chooses) on `runtime` ("" for the best): the one that was begun, else a new one. */
export function model(channel, slug, runtime) {
  const fits = begun && (begun.slug === slug || begun.slug === "") && begun.runtime === runtime;
  const found = fits ? begun : new Model(channel, slug, runtime);
  begun = null;
  return found;
}

/**
 * A model being opened: promises of `manifest` (its text, not looked at), `tokenizer` and `session`. What goes wrong is
 * a Fault in each of them. The channel tells which model the store has chosen, for which sessions, and where it has put
 * the files (see `stored` in ARCHITECTURE.md); it is told the progress, and when another runtime has taken over.
 */
class Model {
  #answers = new Map(); // Files that the store was asked for, and what waits for them.

  constructor(channel, slug, runtime) {
    this.slug = slug;
    this.runtime = runtime;
    this.channel = new BroadcastChannel(channel);
    this.moved = ""; // Why the best session is not the one that runs; engine.py says it again with `ready`.
    const { chosen, stored } = this.#heard();
    this.manifest = chosen.then((choice) =>
      fetchText(new URL(`models/${encodeURIComponent(choice.slug)}/manifest.json`, BASE).href),
    );
    const files = this.#files(chosen, stored);
    this.session = this.#open(chosen, files);
    this.tokenizer = this.#tokenizer(files);
    // Whoever waits for one of them hears of it; the browser need not say that nobody waits yet.
    for (const promise of [this.manifest, this.session, this.tokenizer]) promise.catch(() => {});
  }

  #tell(message) {
    this.channel.postMessage(JSON.stringify(message));
  }

  /** Promises of the store's `chosen` and `stored`, which it says again at every `waiting`. */
  #heard() {
    const heard = {};
    const hears = {};
    for (const kind of ["chosen", "stored"]) heard[kind] = new Promise((resolve) => (hears[kind] = resolve));
    this.channel.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.kind === "fetched") this.#answers.get(message.file)?.(message);
      if (!message.refusal) hears[message.kind]?.(message);
    };
    this.#tell({ kind: "waiting" });
    return heard;
  }

  async #files(chosen, stored) {
    const manifest = JSON.parse(await this.manifest);
    const { where } = await stored;
    if (where === "inside") return new InsideFiles(manifest);
    const report = (message) => this.#tell(message);
    const kept = where !== "nowhere";
    const files = kept ? new KeptFiles({ entries: manifest.files, base: BASE.href, where }) : new MemoryFiles(new Map());
    if (!kept) await complete(files, manifest, needed(manifest, (await chosen).sessions[0]), report);
    return withAdapters(files, manifest, async (entry) => {
      if (kept) await this.#fetched(entry.name);
      await complete(files, manifest, [entry], report); // Into memory, where there is no place or no room in it.
    });
  }

  /** Ask the store for the file `name` and wait until it is kept or cannot be. Throws the store's Fault. */
  async #fetched(name) {
    const answer = new Promise((resolve) => (this.#answers.set(name, resolve)));
    this.#tell({ kind: "fetch", file: name });
    const { fault, detail } = await answer;
    if (fault) throw new Fault(fault, detail);
  }

  async #tokenizer(files) {
    const manifest = JSON.parse(await this.manifest);
    return openTokenizer(await (await files).read(manifest.tokenizer));
  }

  async #open(chosen, files) {
    const progress = (done, total) =>
      this.#tell({ kind: "progress", stage: "open", done, total, unit: "files", rate: null, seconds_left: null });
    const moved = (why, runtime) => {
      this.moved = why;
      this.#tell({ kind: "moved", why, runtime });
    };
    const { sessions, dropped } = await chosen;
    if (dropped) moved(dropped, `${sessions[0].name} ${sessions[0].threads}`);
    const coming = (message) => this.#tell(message);
    return openSession(JSON.parse(await this.manifest), sessions, await files, progress, moved, coming);
  }
}

/** `files`, whose adapters are had by `bring(entry)` when one is read that is not there. */
function withAdapters(files, manifest, bring) {
  const adapters = new Map(adapterEntries(manifest).map((entry) => [entry.name, entry]));
  const read = async (name) => {
    if (adapters.has(name)) await bring(adapters.get(name));
    return files.read(name);
  };
  return Object.assign(Object.create(files), { read });
}

/** Download into memory those of `wanted` that `files` lacks. */
async function complete(files, manifest, wanted, report) {
  const entries = [];
  for (const entry of wanted) if (!(await files.has(entry.name))) entries.push(entry);
  if (!entries.length) return;
  const total = entries.reduce((sum, entry) => sum + entry.bytes, 0);
  const coming = entries.map((entry) => ({
    entry,
    url: new URL(`models/${manifest.slug}/${entry.name}`, BASE).href,
    open: async () => new MemoryPart(entry.bytes),
    keep: async (part) => files.add(entry.name, part.buffer),
  }));
  try {
    await download(coming, new Meter("download", total, report));
  } catch (error) {
    throw asFault(error);
  }
}

/**
 * The tokenizer of tokenizer.json (`bytes`): {added: [[text, special]], encode(text) → Int32Array, decode(ids) → text}.
 * `added` are the tokens recognised wherever they are spelt out.
 */
export async function openTokenizer(bytes) {
  const { Tokenizer } = await twice(() => import(new URL("tokenizers/tokenizers.min.mjs", BASE).href));
  const json = JSON.parse(new TextDecoder().decode(bytes));
  const tokenizer = new Tokenizer(json, { clean_up_tokenization_spaces: false });
  return {
    added: (json.added_tokens ?? []).map(({ content, special }) => [content, Boolean(special)]),
    encode: (text) => Int32Array.from(tokenizer.encode(text, { add_special_tokens: false }).ids, Number),
    decode: (ids) => tokenizer.decode(Array.from(ids), { skip_special_tokens: true }),
  };
}

/**
 * The first of `list` (choose.js) that opens, as a session that outlives its device (enduring.js). `report(done, total)`
 * while files are read; `moved(why, runtime)` whenever another runtime has taken over; `coming(message)` while what it
 * needs is downloaded: its own graph, and the weights where the one before had the only copy.
 */
export function openSession(manifest, list, files, report, moved, coming = () => {}) {
  const start = async (choice) => {
    await complete(files, manifest, needed(manifest, choice), coming);
    const session = await twice(async () => {
      const module = await import(new URL(`sessions/${choice.module}`, BASE).href);
      return module.open({ manifest, files, base: BASE.href, onProgress: report, choice });
    });
    files.letGo(manifest.weights); // The session has them.
    if (choice.name === "webgpu") await judged(choice, true); // It may have been wrong before, and been asked for again.
    return session;
  };
  const judged = (choice, right) =>
    judge(graphSha256(manifest, choice), right).catch((error) => console.warn("What was found is not kept:", error));
  return openFirst(list, start, moved, (choice) => judged(choice, false));
}

/** What was kept of this model's openings (openings.js), or null where nothing can be. `model`: the manifest's hash. */
export function openOpenings(session, model) {
  return openings(session, model, BASE);
}

const graphSha256 = (manifest, { graph }) => manifest.files.find(({ name }) => name === manifest.graphs[graph]).sha256;
