// sha256 as bytes come, by hash-wasm: WebCrypto wants all of them at once.

import "./hash/sha256.umd.min.js"; // It is no module: it adds `hashwasm` to the global object.

const PIECE = 1 << 20;

/** A hash to give bytes to: update(Uint8Array), digest() → hex. */
export async function hasher() {
  const hash = await self.hashwasm.createSHA256();
  hash.init();
  return { update: (bytes) => hash.update(bytes), digest: () => hash.digest("hex") };
}

/** sha256 in hex of a source: its `size` bytes by read(Uint8Array, at). `pause()` is awaited after each mebibyte. */
export async function sha256({ size, read }, pause = () => {}) {
  const hash = await hasher();
  const buffer = new Uint8Array(Math.min(PIECE, size));
  for (let at = 0; at < size; at += buffer.length) {
    const view = buffer.subarray(0, Math.min(buffer.length, size - at));
    read(view, at);
    hash.update(view);
    await pause();
  }
  return hash.digest();
}
