// Files in OPFS, under their sha256, through the sync access handles that workers have. While a file comes it is called
// "<sha256>.part" and carries behind its own bytes how far each piece has come: four bytes a piece.

import { Pieces } from "../pieces.js";
import { patiently } from "../patience.js";

/** The folder of OPFS that `open()` gives as a place, or null where there is none: plain http, some private modes. */
export async function openOpfs(open) {
  if (!navigator.storage?.getDirectory || typeof FileSystemFileHandle.prototype.move !== "function") return null;
  if (typeof FileSystemFileHandle.prototype.createSyncAccessHandle !== "function") return null;
  try {
    return new Opfs(await open());
  } catch {
    return null; // Refused by the browser.
  }
}

class Opfs {
  where = "opfs";
  #directory;

  constructor(directory) {
    this.#directory = directory;
  }

  async has({ sha256, bytes }) {
    const handle = await this.#find(sha256);
    return handle !== null && (await handle.getFile()).size === bytes;
  }

  async read({ sha256 }) {
    // Several tabs read at once; a browser that does not know the mode lets one at a time in, and the others wait.
    const file = await this.#directory.getFileHandle(sha256);
    const handle = await patiently(() => file.createSyncAccessHandle({ mode: "read-only" }));
    return { size: handle.getSize(), read: (view, at) => handle.read(view, { at }), close: () => handle.close() };
  }

  async part({ sha256, bytes }) {
    const file = await this.#directory.getFileHandle(`${sha256}.part`, { create: true });
    const handle = await patiently(() => file.createSyncAccessHandle()); // A tab that was killed lets go of it late.
    try {
      return new Part(file, handle, bytes);
    } catch (error) {
      handle.close();
      throw error;
    }
  }

  async keep({ sha256 }, part) {
    if (await this.#find(sha256)) await this.#directory.removeEntry(sha256); // One of the wrong length.
    await part.finish(sha256);
  }

  async remove(sha256) {
    for (const name of [sha256, `${sha256}.part`]) {
      if (await this.#find(name)) await this.#directory.removeEntry(name);
    }
  }

  async list() {
    const found = new Map();
    try {
      for await (const [name, handle] of this.#directory.entries()) {
        if (handle.kind !== "file") continue;
        const { size } = await handle.getFile().catch(() => ({ size: 0 })); // Gone meanwhile.
        const sha256 = name.replace(/\.part$/, "");
        found.set(sha256, (found.get(sha256) ?? 0) + size);
      }
    } catch (error) {
      if (error.name !== "NotFoundError") throw error; // The visitor has cleared the storage, this folder too.
    }
    return found;
  }

  async #find(name) {
    try {
      return await this.#directory.getFileHandle(name);
    } catch (error) {
      if (error.name === "NotFoundError") return null;
      throw error;
    }
  }
}

class Part {
  #file;
  #handle;

  constructor(file, handle, bytes) {
    this.#file = file;
    this.#handle = handle;
    this.pieces = new Pieces(bytes);
    const { filled } = this.pieces;
    const size = handle.getSize();
    if (size === bytes + filled.byteLength) {
      handle.read(filled, { at: bytes });
      this.pieces = new Pieces(bytes, filled);
    } else if (size === bytes) {
      filled.forEach((_, piece) => (filled[piece] = this.pieces.size(piece))); // Stopped between finish() and its end.
    } else {
      this.clear();
    }
  }

  write(bytes, at) {
    let added = 0;
    for (const { piece, from, to } of this.pieces.missing(at, bytes.length)) {
      this.#put(bytes.subarray(from, to), at + from);
      this.pieces.filled[piece] += to - from;
      this.#put(this.pieces.filled.subarray(piece, piece + 1), this.pieces.bytes + 4 * piece);
      added += to - from;
    }
    return added;
  }

  #put(view, at) {
    if (this.#handle.write(view, { at }) === view.byteLength) return;
    throw new DOMException("The device's storage is full.", "QuotaExceededError");
  }

  read(view, at) {
    return this.#handle.read(view, { at });
  }

  clear() {
    this.pieces.filled.fill(0);
    this.#handle.truncate(0);
    this.#handle.truncate(this.pieces.bytes + this.pieces.filled.byteLength); // Zeros; and the room is asked for at once.
  }

  async finish(name) {
    this.#handle.truncate(this.pieces.bytes);
    this.#handle.flush();
    this.#handle.close();
    await this.#file.move(name);
  }

  close() {
    this.#handle.close();
  }
}
