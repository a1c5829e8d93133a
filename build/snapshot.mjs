// Starts Pyodide in Node, imports what the engine needs, and saves the memory: node snapshot.mjs SITE OUT
//
// SITE is the site being assembled (pyodide/, python/*.whl, handbill/, browser.py). OUT receives snapshot.memory, which
// loadPyodide restores in the browser (`_loadSnapshot`) instead of starting Python and importing, python_stdlib.zip
// without the modules that are in the snapshot already, and pyodide-lock.json without packages to be had elsewhere.

import nodeCrypto from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [site, out] = process.argv.slice(2);
const bytes = (path) => new Uint8Array(readFileSync(path));
const { loadPyodide } = await import(pathToFileURL(join(site, "pyodide", "pyodide.mjs")));

// The same memory from every build, and no path of this machine in it.
Date.now = () => 0;
performance.now = () => 0;
nodeCrypto.randomFillSync = (array) => array.fill(0);

const python = await loadPyodide({
  indexURL: join(site, "pyodide/"),
  env: { PYTHONHASHSEED: "0" },
  _sysExecutable: "/python",
  _makeSnapshot: true,
});
for (const wheel of readdirSync(join(site, "python")).sort()) {
  python.unpackArchive(bytes(join(site, "python", wheel)), "zip", { extractDir: "/handbill" });
}
python.FS.mkdirTree("/handbill/handbill");
for (const name of readdirSync(join(site, "handbill")).sort()) {
  python.FS.writeFile(`/handbill/handbill/${name}`, bytes(join(site, "handbill", name)));
}
python.FS.writeFile("/handbill/browser.py", bytes(join(site, "browser.py")));
python.runPython(readFileSync(new URL("snapshot_imports.py", import.meta.url), "utf8"));
writeFileSync(join(out, "python_stdlib.zip"), python.FS.readFile("/tmp/rest.zip"));
python.FS.unlink("/tmp/rest.zip");
writeFileSync(join(out, "snapshot.memory"), withoutZeros(python.makeMemorySnapshot()));

const lock = JSON.parse(readFileSync(join(site, "pyodide", "pyodide-lock.json"), "utf8"));
writeFileSync(join(out, "pyodide-lock.json"), JSON.stringify({ ...lock, packages: {} }));

/**
 * `bytes` without the pages that hold zeros alone, about half of it: the length and the number of runs, then (first
 * byte, length) of each run, all uint32 in little endian, then the runs. python.mjs puts it together again.
 */
function withoutZeros(bytes) {
  const page = 4096;
  const runs = [];
  for (let at = 0; at < bytes.length; at += page) {
    const piece = bytes.subarray(at, at + page);
    if (piece.every((byte) => byte === 0)) continue;
    const last = runs.at(-1);
    if (last && last[0] + last[1] === at) last[1] += piece.length;
    else runs.push([at, piece.length]);
  }
  const head = Buffer.from(Uint32Array.of(bytes.length, runs.length, ...runs.flat()).buffer);
  return Buffer.concat([head, ...runs.map(([at, length]) => bytes.subarray(at, at + length))]);
}
