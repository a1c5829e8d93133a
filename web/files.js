// Where a model's verified files come from in a worker: a place, where the store keeps them by their sha256, or memory
// (or the page itself: inside.js).
// All have has(name) → Promise<boolean>, add(name, bytes), read(name) → Promise<Uint8Array> and open(name) →
// Promise<{size, read(view, at), close()}>, whose read fills `view` (any memory, also shared) with the bytes from `at` on
// and never gives fewer; and letGo(names), of what a session has in its own memory now: has(name) is false then where
// this was the only copy, and whoever wants the file again downloads it again (model.js).

import { Fault } from "./fault.js";
import { openPlace } from "./place.js";

/** Files in a place. What it is made of (`kept`) can be posted to another worker and opened there again. */
export class KeptFiles {
  constructor({ entries, base, where }) {
    this.kept = { entries, base, where };
    this.entries = new Map(entries.map((entry) => [entry.name, entry]));
    this.place = openPlace(new URL(base), where);
    this.added = new Map();
  }

  async has(name) {
    return this.added.has(name) || (await this.place).has(this.entries.get(name));
  }

  /** Have `bytes` for the file `name`, which the store has not kept. */
  add(name, bytes) {
    this.added.set(name, bytes);
  }

  letGo(names) {
    for (const name of names) this.added.delete(name);
  }

  async read(name) {
    const source = await this.open(name);
    try {
      const bytes = new Uint8Array(source.size);
      source.read(bytes, 0);
      return bytes;
    } finally {
      source.close();
    }
  }

  async open(name) {
    if (this.added.has(name)) return source(name, this.added.get(name));
    const opened = await (await this.place).read(this.entries.get(name));
    return {
      size: opened.size,
      read(view, at) {
        if (opened.read(view, at) !== view.byteLength) throw cutShort(name, opened.size);
      },
      close: () => opened.close(),
    };
  }
}

/** Files that were downloaded into memory: a Map of names and Uint8Arrays. */
export class MemoryFiles {
  constructor(files) {
    this.files = files;
  }

  async has(name) {
    return this.files.has(name);
  }

  add(name, bytes) {
    this.files.set(name, bytes);
  }

  letGo(names) {
    for (const name of names) this.files.delete(name);
  }

  async read(name) {
    return this.files.get(name);
  }

  async open(name) {
    return source(name, this.files.get(name));
  }
}

/** `bytes` of the file `name` as open() gives it. */
export function source(name, bytes) {
  return {
    size: bytes.length,
    read(view, at) {
      if (at + view.byteLength > bytes.length) throw cutShort(name, bytes.length);
      new Uint8Array(view.buffer, view.byteOffset, view.byteLength).set(bytes.subarray(at, at + view.byteLength));
    },
    close() {},
  };
}

/** The Fault of a file that ends before what was asked of it. */
export function cutShort(name, size) {
  return new Fault("corrupt", `The model is cut short in ${name}, which has ${size} bytes.`);
}
