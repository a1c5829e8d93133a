// A model in the engine's worker: its verified files, its tokenizer and the session that runs it.
// engine.py drives this through PyScript's js_modules; nothing here knows of Python or of the page.

import { Meter, download, folderName, needed, sha256 } from "./download.js";
import { Fault, WrongOutput, asFault } from "./fault.js";
import { openOpenings as openings } from "./openings.js";
import { sessions } from "./sessions/choose.js";
import { openFirst } from "./sessions/enduring.js";
import { gather, remember } from "./sessions/facts.js";

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
  if (where === "inside") return insideFiles(manifest, hash);
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

/** Files that came inside the page itself (web/single/), each let go once it is read. */
function insideFiles(manifest, hash) {
  const wanted = new Map(manifest.files.map((entry) => [entry.name, entry.sha256]));
  return {
    async read(name) {
      const path = `models/${manifest.slug}/${name}`;
      const bytes = await self.handbillFiles.read(path);
      self.handbillFiles.drop(path);
      if (hash(bytes) !== wanted.get(name)) throw new Fault("file", name);
      return bytes;
    },
  };
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
        manifest, read: (name) => files.read(name), base: BASE.href, onProgress: report, choice,
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
