// Files in the Cache API, for browsers without OPFS or its sync access handles: one entry a piece, put when it is whole,
// and one for the file, put when its sha256 was found right. A killed tab loses the pieces that were on their way.

import { PIECE, Pieces } from "../pieces.js";

/** The cache `name` as a place, or null where this browser has none. Its entries' addresses begin with `base`. */
export async function openCache(name, base) {
  try {
    return new CachePlace(await caches.open(name), new URL("kept-", base).href);
  } catch {
    return null; // No such API (plain http), or refused by the browser.
  }
}

/** Bytes of the copy of `request` in `cache`; 0 where another tab has removed it since it was listed. */
export async function bytesOf(cache, request) {
  const kept = await cache.match(request);
  return kept ? (await kept.blob()).size : 0;
}

class CachePlace {
  where = "cache";
  #cache;
  #base;

  constructor(cache, base) {
    this.#cache = cache;
    this.#base = base;
  }

  async has({ sha256, bytes }) {
    const kept = await this.#cache.match(this.#base + sha256);
    return kept !== undefined && (await kept.json()).bytes === bytes;
  }

  async read({ sha256, bytes }) {
    const whole = new Uint8Array(bytes);
    let size = 0;
    for (const piece of new Pieces(bytes).filled.keys()) {
      const content = await this.#piece(sha256, piece);
      if (!content) break; // Cut short: whoever reads on is told.
      whole.set(content.subarray(0, bytes - size), size);
      size += content.length;
    }
    return {
      size,
      read(view, at) {
        const part = whole.subarray(at, Math.min(at + view.byteLength, size));
        new Uint8Array(view.buffer, view.byteOffset, view.byteLength).set(part);
        return part.length;
      },
      close() {},
    };
  }

  async part({ sha256, bytes }) {
    const pieces = new Pieces(bytes);
    for (const piece of pieces.filled.keys()) {
      if (await this.#cache.match(this.#address(sha256, piece))) pieces.filled[piece] = pieces.size(piece);
    }
    return new Part(pieces, {
      put: (piece, content) => this.#cache.put(this.#address(sha256, piece), new Response(content)),
      get: (piece) => this.#piece(sha256, piece),
      clear: () => this.remove(sha256),
    });
  }

  async keep({ sha256, bytes }) {
    await this.#cache.put(this.#base + sha256, new Response(JSON.stringify({ bytes })));
  }

  async remove(sha256) {
    for (const { url } of await this.#cache.keys()) {
      if (this.#nameOf(url) === sha256) await this.#cache.delete(url);
    }
  }

  async list() {
    const found = new Map();
    for (const { url } of await this.#cache.keys()) {
      found.set(this.#nameOf(url), (found.get(this.#nameOf(url)) ?? 0) + (await bytesOf(this.#cache, url)));
    }
    return found;
  }

  #nameOf(url) {
    return url.slice(this.#base.length).split("/")[0];
  }

  #address(sha256, piece) {
    return `${this.#base}${sha256}/${piece}`;
  }

  async #piece(sha256, piece) {
    const kept = await this.#cache.match(this.#address(sha256, piece));
    return kept ? new Uint8Array(await kept.arrayBuffer()) : null;
  }
}

class Part {
  #entries;
  #coming = new Map(); // piece → its bytes so far
  #read = { piece: -1, content: null }; // Read last: who reads goes on there.

  constructor(pieces, entries) {
    this.pieces = pieces;
    this.#entries = entries;
  }

  async write(bytes, at) {
    let added = 0;
    for (const { piece, from, to } of this.pieces.missing(at, bytes.length)) {
      const content = this.#coming.get(piece) ?? new Uint8Array(this.pieces.size(piece));
      this.#coming.set(piece, content);
      content.set(bytes.subarray(from, to), this.pieces.filled[piece]);
      this.pieces.filled[piece] += to - from;
      added += to - from;
      if (!this.pieces.isWhole(piece)) continue;
      await this.#entries.put(piece, content);
      this.#coming.delete(piece);
    }
    return added;
  }

  async read(view, at) {
    let done = 0;
    while (done < view.length) {
      const piece = Math.floor((at + done) / PIECE);
      const content = this.#coming.get(piece) ?? (await this.#content(piece));
      const from = at + done - this.pieces.start(piece);
      const part = content.subarray(from, from + view.length - done);
      view.set(part, done);
      done += part.length;
    }
    return done;
  }

  async #content(piece) {
    if (this.#read.piece !== piece) this.#read = { piece, content: await this.#entries.get(piece) };
    return this.#read.content;
  }

  async clear() {
    this.pieces.filled.fill(0);
    this.#coming.clear();
    this.#read = { piece: -1, content: null };
    await this.#entries.clear();
  }

  close() {}
}
