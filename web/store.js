// The store: a worker that downloads the model's files while Python boots and keeps them in OPFS.
//
// A file lies under its sha256, so what is whole is known by its name, a new export never mixes with an old one, and
// two models share what is equal. While it downloads it is called "<sha256>.part" and is resumed from its length. It is
// hashed as it comes; at later visits its name and size are trusted, and its bytes are read again only when the visitor
// has an answer (or none could be given) and waits for nothing.
// In:  {slug} by postMessage from start.js ("" for the site's first model); `waiting`, `ask`, `done` and `fault` on the
//      channel.
// Out: `progress`, `stored` {slug, where} and `fault` on the channel (ARCHITECTURE.md); the last one of them is said
//      again at every `waiting`, because nobody may have been listening the first time.

import { Meter, download, fetchJson, needed, sha256 } from "./download.js";
import { Fault, asFault } from "./fault.js";
import { folderName } from "./files.js";
import { FOLDER as OPENINGS } from "./openings.js";

const BASE = new URL("./", import.meta.url);
const AT_ONCE = 4; // Files that are downloaded side by side.
const channel = new BroadcastChannel(self.name);
let last = null;
let kept = null; // {directory, entries, url} once the model is in OPFS.
let checking = null; // The promise of a check under way.
let resting = Promise.resolve(); // Resolved while nobody waits for an answer.
let rest = () => {};

function post(message) {
  last = message;
  channel.postMessage(JSON.stringify(message));
}

/** A file of OPFS through its sync access handle. */
class OpfsFile {
  constructor(handle) {
    this.handle = handle;
    this.length = handle.getSize();
  }

  write(bytes) {
    const written = this.handle.write(bytes, { at: this.length });
    this.length += written;
    if (written < bytes.length) throw new DOMException("The device's storage is full.", "QuotaExceededError");
  }

  read(view, at) {
    this.handle.read(view, { at });
  }

  clear() {
    this.handle.truncate(0);
    this.length = 0;
  }
}

async function exists(directory, name) {
  try {
    return await directory.getFileHandle(name);
  } catch (error) {
    if (error.name === "NotFoundError") return null;
    throw error;
  }
}

/** True if `entry` is kept in its length. One of another length is removed. */
async function isKept(directory, entry) {
  const handle = await exists(directory, entry.sha256);
  if (!handle) return false;
  if ((await handle.getFile()).size === entry.bytes) return true;
  await directory.removeEntry(entry.sha256);
  return false;
}

async function fetchInto(directory, entry, url, meter) {
  if (await isKept(directory, entry)) {
    meter.skip(entry.bytes);
    return;
  }
  const part = await directory.getFileHandle(`${entry.sha256}.part`, { create: true });
  const handle = await part.createSyncAccessHandle();
  try {
    await download(url, entry, new OpfsFile(handle), meter);
    handle.flush();
  } finally {
    handle.close();
  }
  await part.move(entry.sha256);
}

/** All of `entries`, a few side by side. When one cannot be had the others stop where they are. */
async function fetchAll(directory, entries, url, meter) {
  const left = [...entries];
  let failure = null;
  const lane = async () => {
    while (left.length && !failure) {
      const entry = left.shift();
      await fetchInto(directory, entry, url(entry), meter).catch((error) => (failure ??= error));
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, lane));
  if (failure) throw failure;
}

/** Remove what no model of the site names any more. A manifest that cannot be had spares everything. */
async function tidy(directory, site) {
  const manifests = await Promise.all(
    site.models.map(({ slug }) => fetchJson(manifestUrl(slug)).catch(() => null)),
  );
  if (manifests.includes(null)) return;
  const named = new Set(manifests.flatMap((manifest) => needed(manifest).map((entry) => entry.sha256)));
  for await (const name of directory.keys()) {
    if (name !== OPENINGS && !named.has(name.replace(/\.part$/, ""))) await directory.removeEntry(name).catch(() => {});
  }
}

function manifestUrl(slug) {
  return new URL(`models/${encodeURIComponent(slug)}/manifest.json`, BASE).href;
}

/** Where files can be kept: OPFS with sync handles and rename, which plain http and some private modes lack. */
async function folder(bytes) {
  if (!navigator.storage?.getDirectory || !navigator.locks) return null;
  if (typeof FileSystemFileHandle.prototype.move !== "function") return null;
  try {
    const root = await navigator.storage.getDirectory();
    const directory = await root.getDirectoryHandle(folderName(BASE), { create: true });
    const { quota = Infinity, usage = 0 } = await navigator.storage.estimate();
    return usage + bytes > quota && usage < bytes ? null : directory;
  } catch {
    return null; // Refused by the browser (private mode): the engine runs from memory instead.
  }
}

async function load(slug) {
  const site = await fetchJson(new URL("site.json", BASE).href);
  const chosen = slug || site.models[0]?.slug;
  const manifest = await fetchJson(manifestUrl(chosen));
  // By content: two names for the same bytes are one file here.
  const entries = [...new Map(needed(manifest).map((entry) => [entry.sha256, entry])).values()];
  const total = entries.reduce((sum, entry) => sum + entry.bytes, 0);
  const directory = await folder(total);
  if (!directory) return { kind: "stored", slug: chosen, where: "nowhere" };
  const url = (entry) => new URL(entry.name, manifestUrl(chosen)).href;
  const here = await Promise.all(entries.map((entry) => isKept(directory, entry)));
  if (here.includes(false)) {
    const meter = new Meter("download", total, post);
    meter.tell();
    try {
      // One tab at a time: a second one waits here and then finds the files whole.
      await navigator.locks.request(`handbill ${BASE.pathname}`, async () => {
        await tidy(directory, site);
        await fetchAll(directory, entries, url, meter);
      });
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      return { kind: "stored", slug: chosen, where: "nowhere" };
    }
  }
  kept = { directory, entries };
  return { kind: "stored", slug: chosen, where: "opfs" };
}

/** Read every kept file of the model again, once a visit. What is damaged is removed and said. */
async function check() {
  const damaged = [];
  for (const entry of kept.entries) {
    const handle = await exists(kept.directory, entry.sha256);
    if (!handle) continue; // Removed meanwhile, in another tab.
    let access;
    try {
      access = await handle.createSyncAccessHandle({ mode: "read-only" });
    } catch {
      continue; // In use elsewhere, in a browser where one at a time may read.
    }
    const digest = await sha256(new OpfsFile(access), () => resting).finally(() => access.close());
    if (digest === entry.sha256) continue;
    damaged.push(entry.name);
    await kept.directory.removeEntry(entry.sha256);
  }
  await resting; // A fault in mid-answer would be taken for the answer's.
  if (damaged.length) throw new Fault("damaged", `${damaged.join(", ")}.`);
}

function tell(error) {
  const fault = asFault(error);
  post({ kind: "fault", fault: fault.fault, detail: fault.message });
}

channel.onmessage = ({ data }) => {
  const { kind } = JSON.parse(data);
  if (kind === "waiting" && last) post(last);
  if (kind === "ask") resting = new Promise((resolve) => (rest = resolve));
  if (kind === "done" || kind === "fault") {
    rest();
    if (kept) checking ??= check().catch(tell);
  }
};

self.onmessage = async ({ data }) => {
  try {
    post(await load(data.slug));
  } catch (error) {
    tell(error);
  }
};
