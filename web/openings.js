// Openings: the KV caches of a model's first tokens (its system prompt), kept in OPFS beside the model so that a later
// visit does not read them again. What a file holds is in its name: a folder for each model and kernel, a file for each
// run of tokens. A changed key finds no file; a damaged file is no file.

import { siteFolder } from "./place.js";

export const FOLDER = "openings";
const MOST = 16; // Files of a model; the oldest goes first.
const DIGEST = 32; // Bytes of sha256 before the content.

/**
 * The openings of `session`'s model, or null where they cannot be kept: a session without snapshots, a browser without
 * OPFS. `model` names the exact model (the hash of its manifest). `base` is the site's URL.
 */
export async function openOpenings(session, model, base) {
  if (!session.snapshot || !navigator.storage?.getDirectory || !self.crypto?.subtle) return null;
  try {
    let folder = await siteFolder(base);
    for (const name of [FOLDER, `${model}-${session.kernels}`]) {
      folder = await folder.getDirectoryHandle(name, { create: true });
    }
    const names = [];
    for await (const name of folder.keys()) names.push(name);
    return new Openings(session, folder, names);
  } catch (error) {
    console.warn("Openings are not kept:", error.message);
    return null;
  }
}

class Openings {
  #session;
  #folder;
  #kernels;

  constructor(session, folder, names) {
    this.#session = session;
    this.#folder = folder;
    this.#kernels = session.kernels;
    this.names = names;
  }

  /** Whether another runtime has taken over, of whose KV cache nothing is here. */
  get #foreign() {
    return this.#session.kernels !== this.#kernels;
  }

  /** Keep the first `length` tokens of the KV cache under `name`. */
  async save(name, length) {
    if (this.#foreign) return;
    const content = this.#session.snapshot(length);
    const handle = await this.#folder.getFileHandle(name, { create: true });
    const writable = await handle.createWritable(); // What it replaces stays until close().
    await writable.write(new Uint8Array(await crypto.subtle.digest("SHA-256", content)));
    await writable.write(content);
    await writable.close();
    this.names.push(name);
    if (this.names.length > MOST) await this.#folder.removeEntry(await this.#oldest()).catch(() => {});
  }

  /** Make what lies under `name` the KV cache of `ids` (Int32Array); false, and nothing touched, if it cannot. */
  async restore(name, ids) {
    if (this.#foreign) return false;
    try {
      const file = await (await this.#folder.getFileHandle(name)).getFile();
      const bytes = new Uint8Array(await file.arrayBuffer());
      const content = bytes.subarray(DIGEST);
      const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
      if (this.#foreign) return false;
      if (digest.every((byte, i) => byte === bytes[i]) && this.#session.restore(content, ids)) return true;
      await this.#folder.removeEntry(name);
    } catch (error) {
      console.warn("An opening could not be read:", error.message);
    }
    this.names = this.names.filter((other) => other !== name);
    return false;
  }

  async #oldest() {
    const files = await Promise.all(this.names.map(async (name) => (await this.#folder.getFileHandle(name)).getFile()));
    const oldest = files.reduce((first, file) => (file.lastModified < first.lastModified ? file : first));
    this.names = this.names.filter((name) => name !== oldest.name);
    return oldest.name;
  }
}
