// Where a model's verified files come from in a worker: OPFS, where the store keeps them under their sha256, or memory.
// Both have read(name) → Promise<Uint8Array> and open(name) → Promise<{size, read(view, at), close()}>, whose read fills
// `view` (any memory, also shared) with the bytes from `at` on and never gives fewer.

import { Fault } from "./fault.js";

/** The OPFS folder of the site at `base`: sites under one origin do not tidy each other's files away. */
export function folderName(base) {
  return `handbill ${encodeURIComponent(base.pathname)}`.slice(0, 200);
}

/** Files in OPFS. `entries` ({name, bytes, sha256}) and `base` can be posted to another worker and opened there again. */
export class KeptFiles {
  constructor({ entries, base }) {
    this.kept = { entries, base };
    this.entries = new Map(entries.map((entry) => [entry.name, entry]));
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
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle(folderName(new URL(this.kept.base)));
    const file = await folder.getFileHandle(this.entries.get(name).sha256);
    // Several tabs read at once; a browser that does not know the mode lets one at a time in, and the others wait.
    const handle = await patiently(() => file.createSyncAccessHandle({ mode: "read-only" }));
    const size = handle.getSize();
    return {
      size,
      read(view, at) {
        if (handle.read(view, { at }) !== view.byteLength) throw cutShort(name, size);
      },
      close: () => handle.close(),
    };
  }
}

/** Files that were downloaded into memory: a Map of names and Uint8Arrays. */
export class MemoryFiles {
  constructor(files) {
    this.files = files;
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

function cutShort(name, size) {
  return new Fault("corrupt", `The model is cut short in ${name}, which has ${size} bytes.`);
}

const PATIENCE_MS = 20_000;
const PAUSE_MS = 50;

async function patiently(open) {
  for (const end = performance.now() + PATIENCE_MS; ; ) {
    try {
      return await open();
    } catch (error) {
      if (error.name !== "NoModificationAllowedError" || performance.now() > end) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}
