// The store: a worker that downloads the model's files while Python boots and keeps them in OPFS.
//
// A file lies under its sha256, so what is whole is known by its name, a new export never mixes with an old one, and
// two models share what is equal. While it downloads it is called "<sha256>.part" and is resumed from its length.
// In:  {slug} by postMessage from start.js ("" for the site's first model); `load` on the channel.
// Out: `progress`, `stored` {slug, where} and `fault` on the channel (ARCHITECTURE.md); the last one of them is said
//      again at every `load`, because nobody may have been listening the first time.

import { Meter, download, fetchJson, folderName, needed, sha256 } from "./download.js";
import { asFault } from "./fault.js";
import { FOLDER as OPENINGS } from "./openings.js";

const BASE = new URL("./", import.meta.url);
const channel = new BroadcastChannel(self.name);
let last = null;

function post(message) {
  last = message;
  channel.postMessage(JSON.stringify(message));
}

/** A file of OPFS being written. */
class PartSink {
  constructor(handle) {
    this.handle = handle;
    this.length = handle.getSize();
  }

  write(bytes) {
    const written = this.handle.write(bytes, { at: this.length });
    this.length += written;
    if (written < bytes.length) throw new DOMException("The device's storage is full.", "QuotaExceededError");
  }

  clear() {
    this.handle.truncate(0);
    this.length = 0;
  }

  async digest() {
    this.handle.flush();
    const bytes = new Uint8Array(this.length);
    this.handle.read(bytes, { at: 0 });
    return sha256(bytes);
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

/** True if `entry` is kept and whole. A damaged one is removed. */
async function whole(directory, entry) {
  const handle = await exists(directory, entry.sha256);
  if (!handle) return false;
  const file = await handle.getFile();
  if (file.size === entry.bytes && (await sha256(await file.arrayBuffer())) === entry.sha256) return true;
  await directory.removeEntry(entry.sha256);
  return false;
}

async function fetchInto(directory, entry, url, meter) {
  if (await whole(directory, entry)) {
    meter.skip(entry.bytes);
    return;
  }
  const part = await directory.getFileHandle(`${entry.sha256}.part`, { create: true });
  const handle = await part.createSyncAccessHandle();
  try {
    await download(url, entry, new PartSink(handle), meter);
  } finally {
    handle.close();
  }
  await part.move(entry.sha256);
}

/** Remove what no model of the site names any more. A manifest that cannot be had spares everything. */
async function tidy(directory, site) {
  const manifests = await Promise.all(
    site.models.map(({ slug }) => fetchJson(manifestUrl(slug), "manifest").catch(() => null)),
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

/** Whether the files can be kept here: OPFS with sync handles and rename, which plain http and some private modes lack. */
async function canKeep(bytes) {
  if (!navigator.storage?.getDirectory || !self.crypto?.subtle || !navigator.locks) return null;
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
  const site = await fetchJson(new URL("site.json", BASE).href, "manifest");
  const chosen = slug || site.models[0]?.slug;
  const manifest = await fetchJson(manifestUrl(chosen), "manifest");
  const entries = needed(manifest);
  const total = entries.reduce((sum, entry) => sum + entry.bytes, 0);
  const directory = await canKeep(total);
  if (!directory) return { kind: "stored", slug: chosen, where: "nowhere" };
  const meter = new Meter("download", total, post);
  meter.tell();
  try {
    // One tab at a time: a second one waits here and then finds the files whole.
    await navigator.locks.request(`handbill ${BASE.pathname}`, async () => {
      await tidy(directory, site);
      for (const entry of entries) await fetchInto(directory, entry, new URL(entry.name, manifestUrl(chosen)).href, meter);
    });
  } catch (error) {
    if (error.name !== "QuotaExceededError") throw error;
    return { kind: "stored", slug: chosen, where: "nowhere" };
  }
  return { kind: "stored", slug: chosen, where: "opfs" };
}

channel.onmessage = ({ data }) => {
  if (JSON.parse(data).kind === "load" && last) post(last);
};

self.onmessage = async ({ data }) => {
  try {
    post(await load(data.slug));
  } catch (error) {
    const fault = asFault(error);
    post({ kind: "fault", fault: fault.fault, detail: fault.message });
  }
};
