// Downloading of a model's files: resumed after a broken connection, verified by sha256, told as progress.
// Used by the store (into OPFS) and, where there is no OPFS, by the engine (into memory).

import "./hash/sha256.umd.min.js"; // It is no module: it adds `hashwasm` to the global object.
import { Fault } from "./fault.js";

const ATTEMPTS = 5;
const FIRST_PAUSE_MS = 500;
const REPORT_EVERY_MS = 200;
const RATE_WINDOW_MS = 5000;

/** The manifest's entries ({name, bytes, sha256}) that the page needs: graphs, weights, tokenizer and plan. */
export function needed(manifest) {
  const names = new Set([manifest.tokenizer, ...Object.values(manifest.graphs), manifest.plan, ...manifest.weights]);
  return manifest.files.filter((entry) => names.has(entry.name));
}

/** The text at `url`, asked for anew at each visit. Throws Fault download for anything but an answer. */
export async function fetchText(url) {
  let response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new Fault("download", `${url} could not be fetched (${error.message}).`);
  }
  if (!response.ok) throw new Fault("download", `${url} answered ${response.status}.`);
  return response.text();
}

/** JSON at `url`. Throws Fault manifest for text that is not JSON, and what fetchText throws. */
export async function fetchJson(url) {
  const text = await fetchText(url);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Fault("manifest", `${url} is not JSON (${error.message}).`);
  }
}

/** Counts bytes and tells `report(progress message)` at most five times a second; the rate is that of five seconds. */
export class Meter {
  constructor(stage, total, report) {
    this.stage = stage;
    this.total = total;
    this.done = 0;
    this.report = report;
    this.marks = [];
    this.told = -Infinity;
  }

  /** `bytes` that were here already: they count as done, not towards the rate. */
  skip(bytes) {
    this.done += bytes;
    for (const mark of this.marks) mark.done += bytes;
    this.tell();
  }

  add(bytes) {
    this.done += bytes;
    const now = performance.now();
    if (now - this.told < REPORT_EVERY_MS && this.done < this.total) return;
    this.marks.push({ now, done: this.done });
    while (this.marks.length > 2 && now - this.marks[0].now > RATE_WINDOW_MS) this.marks.shift();
    this.tell();
  }

  tell() {
    this.told = performance.now();
    const [first, last] = [this.marks[0], this.marks.at(-1)];
    const rate = last && last.now > first.now ? (1000 * (last.done - first.done)) / (last.now - first.now) : 0;
    const left = rate > 0 ? (this.total - this.done) / rate : null;
    this.report({
      kind: "progress", stage: this.stage, done: this.done, total: this.total, unit: "bytes",
      rate: Math.max(0, rate), seconds_left: left,
    });
  }
}

/**
 * Download `entry` from `url` into `sink` and verify it; a corrupt file is fetched once more from its first byte.
 * `sink` has `length`, `write(Uint8Array)`, `read(Uint8Array, at)` and `clear()`, and may hold a first part.
 * Throws Fault download or corrupt.
 */
export async function download(url, entry, sink, meter) {
  meter.skip(Math.min(sink.length, entry.bytes));
  const hashed = await hashing(sink);
  for (let round = 0; ; round += 1) {
    if (sink.length > entry.bytes) restart(hashed, meter, entry.bytes);
    await fill(url, entry, hashed, meter);
    if (hashed.digest() === entry.sha256) return;
    restart(hashed, meter, entry.bytes);
    if (round === 1) {
      throw new Fault("corrupt", `${entry.name} was downloaded twice and does not match the manifest's sha256.`);
    }
  }
}

/** `sink`, which hashes what is written to it, so that a shard need not be read again as a whole. */
async function hashing(sink) {
  const hash = await self.hashwasm.createSHA256();
  hash.init();
  await eachPiece(sink, (piece) => hash.update(piece));
  return {
    get length() {
      return sink.length;
    },
    write(bytes) {
      sink.write(bytes);
      hash.update(bytes);
    },
    clear() {
      sink.clear();
      hash.init();
    },
    digest: () => hash.digest("hex"),
  };
}

const PIECE = 1 << 20;

/** sha256 in hex of what `sink` holds; `pause()` is awaited after each mebibyte. */
export async function sha256(sink, pause = () => {}) {
  const hash = await self.hashwasm.createSHA256();
  hash.init();
  await eachPiece(sink, (piece) => {
    hash.update(piece);
    return pause();
  });
  return hash.digest("hex");
}

async function eachPiece(sink, use) {
  const buffer = new Uint8Array(Math.min(PIECE, sink.length));
  for (let at = 0; at < sink.length; at += buffer.length) {
    const piece = buffer.subarray(0, Math.min(buffer.length, sink.length - at));
    sink.read(piece, at);
    await use(piece);
  }
}

function restart(sink, meter, counted) {
  meter.skip(-Math.min(sink.length, counted));
  sink.clear();
}

/** Fetch from `sink.length` to the end. Attempts are counted anew whenever bytes arrived. */
async function fill(url, entry, sink, meter) {
  let attempt = 0;
  while (sink.length < entry.bytes) {
    const before = sink.length;
    let reason;
    try {
      reason = await fetchRest(url, entry, sink, meter);
    } catch (error) {
      if (error instanceof Fault || error.name === "QuotaExceededError") throw error;
      reason = error.message;
    }
    if (sink.length >= entry.bytes) return;
    attempt = sink.length > before ? 1 : attempt + 1;
    if (attempt >= ATTEMPTS) {
      throw new Fault("download", `${entry.name} stopped at ${sink.length} of ${entry.bytes} bytes (${reason}).`);
    }
    await new Promise((resolve) => setTimeout(resolve, FIRST_PAUSE_MS * 2 ** (attempt - 1)));
  }
}

/** One request; why it ended early, as text. */
async function fetchRest(url, entry, sink, meter) {
  const from = sink.length;
  // `no-store`: the store keeps the bytes itself, and a second copy in the HTTP cache would double the space.
  const options = { cache: "no-store", headers: from ? { Range: `bytes=${from}-` } : {} };
  const response = await fetch(url, options);
  if (response.status >= 500 || response.status === 429) return `the server answered ${response.status}`;
  if (response.status === 416 || (from && response.status === 200)) restart(sink, meter, entry.bytes);
  else if (!response.ok) throw new Fault("download", `${entry.name} is missing: the server answered ${response.status}.`);
  if (response.status === 416) return "the server refused to resume";
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return "the connection ended early";
    if (sink.length + value.length > entry.bytes) {
      await reader.cancel();
      // Longer than the manifest says: keep what fits; the sha256 decides.
      const rest = value.subarray(0, entry.bytes - sink.length);
      sink.write(rest);
      meter.add(rest.length);
      return "";
    }
    sink.write(value);
    meter.add(value.length);
  }
}
