// A model in the engine's worker: its verified files, its tokenizer and the session that runs it.
// python.mjs begins it while Python boots, engine.py takes it over through PyScript's js_modules; nothing here knows of
// Python or of the page.

import { Meter, download, fetchText, needed, sha256 } from "./download.js";
import { Fault, WrongOutput, asFault } from "./fault.js";
import { KeptFiles, MemoryFiles, source } from "./files.js";
import { openOpenings as openings } from "./openings.js";
import { sessions } from "./sessions/choose.js";
import { openFirst } from "./sessions/enduring.js";
import { gather, remember } from "./sessions/facts.js";

export const BASE = new URL("./", import.meta.url);

let begun = null;

/** Begin to open a model before anybody asked for it; `model` hands it out. */
export function begin(channel, slug, runtime) {
  begun = new Model(channel, slug, runtime);
}

/** The model `slug` ("" for the site's first) on `runtime` ("" for the best): the one that was begun, else a new one. */
export function model(channel, slug, runtime) {
  const fits = begun && (begun.slug === slug || begun.slug === "") && begun.runtime === runtime;
  const found = fits ? begun : new Model(channel, slug, runtime);
  begun = null;
  return found;
}

/**
 * A model being opened: promises of `manifest` (its text, not looked at), `tokenizer` and `session`. What goes wrong is
 * a Fault in each of them. The channel tells where the store has put the files, and is told the progress.
 */
class Model {
  constructor(channel, slug, runtime) {
    this.slug = slug;
    this.runtime = runtime;
    this.channel = new BroadcastChannel(channel);
    const site = fetchText(new URL("site.json", BASE).href);
    this.manifest = site.then((text) => {
      const chosen = slug || JSON.parse(text).models[0]?.slug;
      return fetchText(new URL(`models/${encodeURIComponent(chosen)}/manifest.json`, BASE).href);
    });
    const files = this.manifest.then((text) => this.#files(JSON.parse(text)));
    this.session = this.#open(site, files);
    this.tokenizer = this.#tokenizer(files);
    // Whoever waits for one of them hears of it; the browser need not say that nobody waits yet.
    for (const promise of [this.manifest, this.session, this.tokenizer]) promise.catch(() => {});
  }

  #tell(message) {
    this.channel.postMessage(JSON.stringify(message));
  }

  /** Where the store has put the files: "opfs", "nowhere" or "inside". It says so at every `waiting`. */
  #stored() {
    return new Promise((resolve) => {
      this.channel.onmessage = ({ data }) => {
        const { kind, where } = JSON.parse(data);
        if (kind === "stored") resolve(where);
      };
      this.#tell({ kind: "waiting" });
    });
  }

  async #files(manifest) {
    const where = await this.#stored();
    if (where === "inside") return new InsideFiles(manifest);
    if (where === "opfs") return new KeptFiles({ entries: manifest.files, base: BASE.href });
    return fetchFiles(manifest, (message) => this.#tell(message));
  }

  async #tokenizer(files) {
    const manifest = JSON.parse(await this.manifest);
    return openTokenizer(await (await files).read(manifest.tokenizer));
  }

  async #open(site, files) {
    const progress = (done, total) =>
      this.#tell({ kind: "progress", stage: "open", done, total, unit: "files", rate: null, seconds_left: null });
    return openSession(await this.manifest, await site, await files, this.runtime, progress);
  }
}

/** Files that came inside the page itself (web/single/), each let go once it is read. */
class InsideFiles {
  constructor(manifest) {
    this.folder = `models/${manifest.slug}`;
    this.wanted = new Map(manifest.files.map((entry) => [entry.name, entry.sha256]));
  }

  async read(name) {
    const path = `${this.folder}/${name}`;
    const bytes = await self.handbillFiles.read(path);
    self.handbillFiles.drop(path);
    const found = await sha256({ length: bytes.length, read: source(name, bytes).read });
    if (found !== this.wanted.get(name)) throw new Fault("file", name);
    return bytes;
  }

  async open(name) {
    return source(name, await this.read(name));
  }
}

/** A file that is downloaded into memory. */
class MemorySink {
  constructor(bytes) {
    this.buffer = new Uint8Array(bytes);
    this.length = 0;
  }

  write(bytes) {
    this.buffer.set(bytes, this.length);
    this.length += bytes.length;
  }

  read(view, at) {
    view.set(this.buffer.subarray(at, at + view.length));
  }

  clear() {
    this.length = 0;
  }
}

async function fetchFiles(manifest, report) {
  const entries = needed(manifest);
  const total = entries.reduce((sum, entry) => sum + entry.bytes, 0);
  const meter = new Meter("download", total, report);
  const files = new Map();
  try {
    for (const entry of entries) {
      const sink = new MemorySink(entry.bytes);
      await download(new URL(`models/${manifest.slug}/${entry.name}`, BASE).href, entry, sink, meter);
      files.set(entry.name, sink.buffer);
    }
  } catch (error) {
    throw asFault(error);
  }
  return new MemoryFiles(files);
}

/**
 * The tokenizer of tokenizer.json (`bytes`): {added: [[text, special]], encode(text) → Int32Array, decode(ids) → text}.
 * `added` are the tokens recognised wherever they are spelt out.
 */
export async function openTokenizer(bytes) {
  const { Tokenizer } = await import(new URL("tokenizers/tokenizers.min.mjs", BASE).href);
  const json = JSON.parse(new TextDecoder().decode(bytes));
  const tokenizer = new Tokenizer(json, { clean_up_tokenization_spaces: false });
  return {
    added: (json.added_tokens ?? []).map(({ content, special }) => [content, Boolean(special)]),
    encode: (text) => Int32Array.from(tokenizer.encode(text, { add_special_tokens: false }).ids, Number),
    decode: (ids) => tokenizer.decode(Array.from(ids), { skip_special_tokens: true }),
  };
}

/**
 * The best session that opens, as one that outlives its device (enduring.js). `report(done, total)` while files are
 * read; `moved(why, runtime)` whenever another runtime has taken over. `forced`: see choose.js.
 */
export async function openSession(manifestText, siteText, files, forced, report, moved = () => {}) {
  const manifest = JSON.parse(manifestText);
  const { list, refusal, dropped } = sessions(await gather(JSON.parse(siteText)), manifest, forced);
  if (refusal === "memory") throw new Fault("memory", `${manifest.title} does not fit into this device's memory.`);
  if (refusal) throw new Fault("device", forced ? `"${forced}" was asked for and is not to be had here.` : "No runtime fits.");
  if (dropped) moved(dropped, list[0].words);
  const start = async (choice) => {
    const module = await import(new URL(`sessions/${choice.module}`, BASE).href);
    try {
      return await module.open({
        manifest, read: (name) => files.read(name), files, base: BASE.href, onProgress: report, choice,
      });
    } catch (error) {
      if (error instanceof WrongOutput) await remember(graphSha256(manifest, choice)).catch(console.warn);
      throw error;
    }
  };
  return openFirst(list, start, moved);
}

/** What was kept of this model's openings (openings.js), or null where nothing can be. `model`: the manifest's hash. */
export function openOpenings(session, model) {
  return openings(session, model, BASE);
}

const graphSha256 = (manifest, { graph }) => manifest.files.find(({ name }) => name === manifest.graphs[graph]).sha256;
