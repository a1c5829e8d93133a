// One file, both sides: the site's files as they arrive out of the page, for fetch() and import() on a file:// page that
// has neither. Every file has the address handbill://site/NAME, which nothing but this code ever resolves.

const SITE = "handbill://site/";
const CHUNK = 4 << 20; // Bytes: what is let go of at once.
const TYPES = { js: "text/javascript", mjs: "text/javascript", json: "application/json", wasm: "application/wasm" };

/** Files by name: bytes that are here, or will be when the page is parsed as far. */
class Files {
  #found = new Map(); // name → {chunks: [Uint8Array], filled, whole: Promise of the file's chunks, done}
  #links = new Map();

  /** Take the next piece of `name`: `bytes` (Uint8Array) of `total`, which gzip made of `unpacked` where that is said. */
  async take({ name, bytes, total, unpacked }) {
    const entry = this.#entry(name);
    for (let done = 0; done < bytes.length; ) {
      const at = entry.filled % CHUNK;
      if (at === 0) entry.chunks.push(new Uint8Array(Math.min(CHUNK, total - entry.filled)));
      const part = bytes.subarray(done, done + CHUNK - at);
      entry.chunks.at(-1).set(part, at);
      entry.filled += part.length;
      done += part.length;
    }
    forget(bytes.buffer);
    if (entry.filled < total) return;
    if (unpacked !== undefined) entry.chunks = [await inflated(entry.chunks, unpacked)];
    entry.done(entry.chunks);
  }

  /** The bytes of `name` as Uint8Arrays, all but the last of one length, once they are whole. */
  chunks(name) {
    return this.#entry(name).whole;
  }

  /** The bytes of `name`, once they are whole. */
  async read(name) {
    const chunks = await this.chunks(name);
    return chunks.length === 1 ? chunks[0] : new Uint8Array(await new Blob(chunks).arrayBuffer());
  }

  /** Let go of the first `count` chunks of `name`, or of all of it: nobody reads them again. */
  drop(name, count = Infinity) {
    const { chunks } = this.#found.get(name);
    if (count >= chunks.length) this.#found.delete(name);
    free(chunks.slice(0, count));
  }

  /** What a script may fetch: a Response with the file of that address, or what the browser's own fetch says. */
  async fetch(address, original, options) {
    const name = this.nameOf(address);
    if (name === null) return original(address, options);
    const bytes = await this.read(name);
    const response = new Response(bytes, { headers: { "Content-Type": TYPES[name.split(".").at(-1)] ?? "text/plain" } });
    if (name.startsWith("pyodide/")) this.drop(name); // Python starts once, and its files are 30 MB.
    return response;
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
      entry = { chunks: [], filled: 0 };
      entry.whole = new Promise((resolve) => (entry.done = resolve));
      this.#found.set(name, entry);
    }
    return entry;
  }
}

/** What `chunks` of gzip become, `size` bytes; the chunks are let go of. */
async function inflated(chunks, size) {
  const whole = new Uint8Array(size); // Not by Response.arrayBuffer(), whose memory drop() could not give back.
  const reader = new Blob(chunks).stream().pipeThrough(new DecompressionStream("gzip")).getReader();
  free(chunks);
  for (let at = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) return whole;
    whole.set(value, at);
    at += value.length;
  }
}

/** Give the memory of `chunks` that were made here back at once: a collector comes late. */
function free(chunks) {
  for (const { buffer } of chunks) if (buffer.byteLength) buffer.transfer?.(0);
}

/**
 * Give the memory of `buffer`, which came in a message, back at once, as a collector would late: it is sent where nobody
 * receives, for the browser has a hold of its own on it that transfer() leaves alone.
 */
function forget(buffer) {
  const { port1, port2 } = new MessageChannel();
  port2.close();
  port1.postMessage(null, [buffer]);
  port1.close();
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
