// What PyScript starts as the engine's interpreter: Pyodide, restored from the memory that build/snapshot.mjs saved with
// jinja2 and handbill imported. While it comes up, the model is opened; start.js says which one in the address.

import { begin } from "./model.js";
import { loadPyodide as load, version } from "./pyodide/pyodide.mjs";

const HERE = new URL("./pyodide/", import.meta.url);

// All at once: left to itself, Pyodide asks for one after the other.
const snapshot = fetch(new URL("snapshot.memory", HERE)).then((response) => {
  if (!response.ok) throw new Error(`${response.url} answered ${response.status}.`);
  return response.arrayBuffer();
}).then(withZeros);
const script = import("./pyodide/pyodide.asm.mjs");
const asked = new URL(import.meta.url).searchParams;
if (asked.has("channel")) begin(asked.get("channel"), asked.get("slug"), asked.get("runtime"));

export { version };

/** loadPyodide as PyScript calls it. */
export async function loadPyodide(options) {
  const python = await load({
    ...options,
    indexURL: HERE.href,
    createPyodideModule: (await script).default,
    _loadSnapshot: snapshot,
  });
  (await snapshot).buffer.transfer?.(0); // 30 MB, copied by now, which a garbage collector would come to late.
  return python;
}

/** The memory as Pyodide saved it, of what withoutZeros in build/snapshot.mjs made of it. */
function withZeros(packed) {
  const [total, count] = new Uint32Array(packed, 0, 2);
  const runs = new Uint32Array(packed, 8, count * 2);
  const memory = new Uint8Array(total);
  let from = 8 + count * 8;
  for (let i = 0; i < runs.length; i += 2) {
    memory.set(new Uint8Array(packed, from, runs[i + 1]), runs[i]);
    from += runs[i + 1];
  }
  return memory;
}
