// A manifest before Python has seen it: what of it makes this page fetch, hash, count and reserve has to be sound. The
// rest is handbill/manifest.py's, which refuses what it does not know.

import { Fault } from "./fault.js";

const PLAIN_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/; // No folder, no address, nothing that a URL reads otherwise.
const MOST_BYTES = 2 ** 30; // Of one file, as in handbill/manifest.py.
const SHA256 = /^[0-9a-f]{64}$/;
const COUNTS = {
  architecture: ["layers", "hidden", "heads", "kv_heads", "head_dim", "vocabulary", "context"],
  kv: ["layers", "kv_heads", "head_dim"],
};

/** `manifest` (parsed JSON) as it is, if it is sound and of the model `slug`. Throws Fault manifest. */
export function sound(manifest, slug) {
  const need = (condition, what) => {
    if (!condition) throw new Fault("manifest", `The manifest of ${slug} ${what}; export the model again.`);
  };
  const count = (value) => Number.isSafeInteger(value) && value > 0;
  need(manifest?.slug === slug, "is another model's");
  need(Array.isArray(manifest.files) && manifest.files.length, "lists no files");
  for (const entry of manifest.files) {
    need(PLAIN_NAME.test(entry?.name), `lists a file ${JSON.stringify(entry?.name)}, which is no plain name`);
    need(count(entry.bytes) && entry.bytes <= MOST_BYTES, `gives ${entry.name} the size ${entry.bytes}`);
    need(SHA256.test(entry.sha256), `has no sha256 of ${entry.name}`);
  }
  const names = new Set(manifest.files.map(({ name }) => name));
  need(names.size === manifest.files.length, "lists a file twice");
  need(Array.isArray(manifest.weights) && manifest.weights.length, "names no weights");
  need(typeof manifest.graphs === "object" && manifest.graphs !== null, "names no graphs");
  const read = [...manifest.weights, ...Object.values(manifest.graphs), manifest.tokenizer];
  if (manifest.plan) read.push(manifest.plan);
  for (const name of read) need(names.has(name), `does not list ${JSON.stringify(name)}`);
  for (const [part, keys] of Object.entries(COUNTS)) {
    for (const key of keys) need(count(manifest[part]?.[key]), `has ${part}.${key} ${manifest[part]?.[key]}`);
  }
  return manifest;
}
