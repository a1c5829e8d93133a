// A model in the engine's worker: its verified files, its tokenizer and the session that runs it.
// engine.py drives this through PyScript's js_modules; nothing here knows of Python or of the page.

import { Meter, download, folderName, needed, sha256 } from "./download.js";
import { Fault, asFault } from "./fault.js";
import { openOpenings as openings } from "./openings.js";
import { choose } from "./sessions/choose.js";

export const BASE = new URL("./", import.meta.url);

/**
 * The verified files of a model: {read(name) → Promise<Uint8Array>}.
 *
 * `where` is what the store said: "opfs", or "nowhere", in which case the files are downloaded here and stay in memory
 * until they are read. `report` gets progress as JSON text; `hash(Uint8Array)` → sha256 in hex serves where the
 * browser has no crypto.subtle (plain http on a local network).
 */
export async function openFiles(manifestText, where, report, hash) {
  const manifest = JSON.parse(manifestText);
  return where === "opfs" ? new KeptFiles(manifest) : fetchFiles(manifest, report, hash);
}

class KeptFiles {
  constructor(manifest) {
    this.entries = new Map(manifest.files.map((entry) => [entry.name, entry]));
  }

  async read(name) {
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle(folderName(BASE));
    const handle = await folder.getFileHandle(this.entries.get(name).sha256);
    return new Uint8Array(await (await handle.getFile()).arrayBuffer());
  }
}

class MemorySink {
  constructor(bytes, hash) {
    this.buffer = new Uint8Array(bytes);
    this.length = 0;
    this.hash = hash;
  }

  write(bytes) {
    this.buffer.set(bytes, this.length);
    this.length += bytes.length;
  }

  clear() {
    this.length = 0;
  }

  async digest() {
    return self.crypto?.subtle ? sha256(this.buffer) : this.hash(this.buffer);
  }
}

async function fetchFiles(manifest, report, hash) {
  const entries = needed(manifest);
  const total = entries.reduce((sum, entry) => sum + entry.bytes, 0);
  const meter = new Meter("download", total, (message) => report(JSON.stringify(message)));
  const files = new Map();
  try {
    for (const entry of entries) {
      const sink = new MemorySink(entry.bytes, hash);
      await download(new URL(`models/${manifest.slug}/${entry.name}`, BASE).href, entry, sink, meter);
      files.set(entry.name, sink.buffer);
    }
  } catch (error) {
    throw asFault(error);
  }
  return {
    read: async (name) => files.get(name),
  };
}

/** The tokenizer of tokenizer.json (`bytes`): {encode(text) → Int32Array, decode(ids) → text}. */
export async function openTokenizer(bytes) {
  const { Tokenizer } = await import(new URL("tokenizers/tokenizers.min.mjs", BASE).href);
  const json = JSON.parse(new TextDecoder().decode(bytes));
  const tokenizer = new Tokenizer(json, { clean_up_tokenization_spaces: false });
  return {
    encode: (text) => Int32Array.from(tokenizer.encode(text, { add_special_tokens: false }).ids, Number),
    decode: (ids) => tokenizer.decode(Array.from(ids), { skip_special_tokens: true }),
  };
}

/** What this browser and this site offer, for choose(). */
export async function facts(manifest, site) {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return {
    adapter: adapter ? (adapter.info?.isFallbackAdapter ? "software" : "hardware") : "none",
    jspi: typeof WebAssembly.Suspending === "function",
    isolated: self.crossOriginIsolated === true,
    cores: navigator.hardwareConcurrency || 1,
    int4: "sessions/cpu.js" in site.files,
    plan: manifest.plan,
    graphs: manifest.graphs,
  };
}

/**
 * The best session that opens; where one fails (a graphics chip with too little memory), the next is tried, and what
 * the last one threw is thrown. `report(done, total)` while files are read. `forced`: see choose.
 */
export async function openSession(manifestText, siteText, files, forced, report) {
  const manifest = JSON.parse(manifestText);
  const choices = choose(await facts(manifest, JSON.parse(siteText)), forced);
  if (!choices.length) {
    throw new Fault("device", forced ? `"${forced}" was asked for and is not to be had here.` : "No runtime fits.");
  }
  let failure;
  for (const choice of choices) {
    try {
      const module = await import(new URL(`sessions/${choice.module}`, BASE).href);
      return await module.open({
        manifest, read: (name) => files.read(name), base: BASE.href, onProgress: report, choice,
      });
    } catch (error) {
      console.warn(`The session "${choice.name}" did not open:`, error);
      failure = asFault(error);
    }
  }
  throw failure;
}

/** What was kept of this model's openings (openings.js), or null where nothing can be. `model`: the manifest's hash. */
export function openOpenings(session, model) {
  return openings(session, model, BASE);
}
