// What PyScript starts as the engine's interpreter: Pyodide, restored from the memory that build/snapshot.mjs saved with
// jinja2 and handbill imported. While it comes up, the model is opened; start.js says which one in the address.

import { begin } from "./model.js";
import { loadPyodide as load, version } from "./pyodide/pyodide.mjs";

const HERE = new URL("./pyodide/", import.meta.url);

// All at once: left to itself, Pyodide asks for one after the other.
const packed = fetch(new URL("snapshot.memory", HERE)).then((response) => {
  if (!response.ok) throw new Error(`${response.url} answered ${response.status}.`);
  return response.arrayBuffer();
});
const script = import("./pyodide/pyodide.asm.mjs");
const asked = new URL(import.meta.url).searchParams;
if (asked.has("channel")) begin(asked.get("channel"), asked.get("slug"), asked.get("runtime"));

export { version };

/** loadPyodide as PyScript calls it. Rejects, too, where Pyodide's WebAssembly does not come. */
export async function loadPyodide(options) {
  const create = (await script).default;
  const missing = noWebAssembly();
  let module;
  const python = load({
    ...options,
    indexURL: HERE.href,
    createPyodideModule: (settings) => create((module = settings)),
    _loadSnapshot: packed.then((bytes) => Snapshot.of(bytes, () => module.HEAPU8)),
  });
  return Promise.race([python, missing]);
}

/** Rejects as the next WebAssembly.instantiateStreaming does: Pyodide writes that to the console, and waits for ever. */
function noWebAssembly() {
  const { instantiateStreaming } = WebAssembly;
  return new Promise((_, reject) => {
    WebAssembly.instantiateStreaming = (...given) => {
      WebAssembly.instantiateStreaming = instantiateStreaming;
      const made = instantiateStreaming.apply(WebAssembly, given);
      made.catch(({ message }) => reject(new Error(`pyodide.asm.wasm did not come (${message}).`)));
      return made;
    };
  });
}

/**
 * What withoutZeros in build/snapshot.mjs made of Python's memory, as Pyodide 314 reads it: a Uint8Array of the whole's
 * `length`, of which it looks at the head and asks for the rest, to be copied over its memory. The rest is written from
 * here, run by run: zeros that nobody writes take no memory (13 MB), and no second copy of all of it is made.
 */
class Snapshot extends Uint8Array {
  #packed;
  #memory;

  /** `packed` of withoutZeros, whose first run is the head; `memory()` is Python's, once there is one. */
  static of(packed, memory) {
    const [total, count] = new Uint32Array(packed, 0, 2);
    const runs = new Uint32Array(packed, 8, count * 2);
    const snapshot = new Snapshot(packed, 8 + count * 8, runs[1]);
    snapshot.#packed = { bytes: packed, total, runs };
    snapshot.#memory = memory;
    return snapshot;
  }

  get length() {
    return this.#packed.total;
  }

  subarray(first, end) {
    if (end === undefined) return this.#restore(first);
    return new Uint8Array(this.buffer, this.byteOffset + first, end - first).slice(); // It outlives the buffer.
  }

  /** Write what stands from byte `first` on over the memory; nothing is left to be copied. */
  #restore(first) {
    const { bytes, total, runs } = this.#packed;
    const memory = this.#memory();
    let from = this.byteOffset;
    let done = first;
    for (let i = 0; i < runs.length; i += 2) {
      const [start, length] = [runs[i], runs[i + 1]];
      const skipped = Math.max(0, first - start);
      clear(memory, done - first, start - first);
      memory.set(new Uint8Array(bytes, from + skipped, length - skipped), start + skipped - first);
      done = start + length;
      from += length;
    }
    clear(memory, done - first, total - first);
    release(bytes);
    return [];
  }
}

/** Zero the part of `memory` (its `buffer` from byte `first` to `end`), writing only where it is not zero yet. */
function clear({ buffer }, first, end) {
  const words = new Int32Array(buffer, first, Math.max(0, end - first) / 4);
  for (let i = 0; i < words.length; i += 1) if (words[i] !== 0) words[i] = 0;
}

/**
 * Give `buffer`'s memory (18 MB, which a garbage collector would come to late) back at once: sent where nobody receives,
 * for the browser has a hold of its own on what fetch() made, which transfer() leaves alone.
 */
function release(buffer) {
  const { port1, port2 } = new MessageChannel();
  port2.close();
  port1.postMessage(null, [buffer]);
  port1.close();
}
