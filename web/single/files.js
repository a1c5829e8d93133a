// One file, both sides: the site's files as they arrive out of the page, for fetch() and import() on a file:// page that
// has neither. Every file has the address handbill://site/NAME, which nothing but this code ever resolves.

const SITE = "handbill://site/";
const TYPES = { js: "text/javascript", mjs: "text/javascript", json: "application/json", wasm: "application/wasm" };

/** Files by name: bytes that are here, or will be when the page is parsed as far. */
class Files {
  #found = new Map(); // name → {bytes: Uint8Array, filled, whole: Promise, done}
  #links = new Map();

  /** Take a piece of `name`: `bytes` (Uint8Array) from `at` of `total`; `gzip` pieces come whole. */
  async take({ name, bytes, at, total, gzip }) {
    const entry = this.#entry(name);
    if (gzip) {
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      entry.done(new Uint8Array(await new Response(stream).arrayBuffer()));
      return;
    }
    entry.bytes ??= new Uint8Array(total);
    entry.bytes.set(bytes, at);
    entry.filled += bytes.length;
    if (entry.filled === total) entry.done(entry.bytes);
  }

  /** The bytes of `name`, once they are whole. */
  read(name) {
    return this.#entry(name).whole;
  }

  /** Let `name` go: nobody reads it again. */
  drop(name) {
    this.#found.delete(name);
  }

  /** What a script may fetch: a Response with the file of that address, or what the browser's own fetch says. */
  async fetch(address, original, options) {
    const name = this.nameOf(address);
    if (name === null) return original(address, options);
    const bytes = await this.read(name);
    return new Response(bytes, { headers: { "Content-Type": TYPES[name.split(".").at(-1)] ?? "text/plain" } });
  }

  /** The file that `address` (a string, URL or Request) means, or null if it is none of ours. */
  nameOf(address) {
    const base = globalThis.document?.baseURI ?? SITE;
    const { href } = new URL(address.url ?? address, base);
    const roots = [SITE, new URL("./", base).href];
    const root = roots.find((start) => href.startsWith(start));
    return root === undefined ? null : decodeURIComponent(href.slice(root.length).split(/[?#]/)[0]);
  }

  /** A blob: address from which the module `name` can be imported, with all that it imports itself. */
  async link(name) {
    if (!this.#links.has(name)) this.#links.set(name, this.#blob(name));
    return this.#links.get(name);
  }

  async #blob(name) {
    let text = new TextDecoder().decode(await this.read(name));
    for (const [specifier, other] of new Set(text.matchAll(/"handbill\/([^"]+)"/g))) {
      text = text.replaceAll(specifier, JSON.stringify(await this.link(other)));
    }
    return URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  }

  #entry(name) {
    let entry = this.#found.get(name);
    if (!entry) {
      entry = { filled: 0 };
      entry.whole = new Promise((resolve) => (entry.done = resolve));
      this.#found.set(name, entry);
    }
    return entry;
  }
}

/** BroadcastChannel for a page and its worker, which on file:// do not share one. `send` carries to the other side. */
function makeChannels(send) {
  const open = new Set();
  const hear = (name, data, but) => {
    for (const channel of open) {
      if (channel.name === name && channel !== but) setTimeout(() => channel.onmessage?.(new MessageEvent("message", { data })));
    }
  };
  class Channel {
    onmessage = null;

    constructor(name) {
      this.name = name;
      open.add(this);
    }

    postMessage(data) {
      hear(this.name, data, this);
      send({ channel: this.name, data });
    }

    close() {
      open.delete(this);
    }
  }
  return { Channel, hear };
}
