// Downloading of a model's files: resumed after a broken connection, verified by sha256, told as progress.
// Used by the store (into OPFS) and, where there is no OPFS, by the engine (into memory).

import { Fault } from "./fault.js";

const ATTEMPTS = 5;
const FIRST_PAUSE_MS = 500;
const REPORT_EVERY_MS = 200;
const RATE_WINDOW_MS = 5000;

/** The OPFS folder of the site at `base`: sites under one origin do not tidy each other's files away. */
export function folderName(base) {
  return `handbill ${encodeURIComponent(base.pathname)}`.slice(0, 200);
}

/** The manifest's entries ({name, bytes, sha256}) that the page needs: graphs, weights, tokenizer and plan. */
export function needed(manifest) {
  const names = new Set([manifest.tokenizer, ...Object.values(manifest.graphs), manifest.plan, ...manifest.weights]);
  return manifest.files.filter((entry) => names.has(entry.name));
}

/** Raw JSON at `url`. Throws a Fault of `kind` with a sentence for anything but a whole JSON document. */
export async function fetchJson(url, kind) {
  let response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new Fault("download", `${url} could not be fetched (${error.message}).`);
  }
  if (!response.ok) throw new Fault("download", `${url} answered ${response.status}.`);
  try {
    return await response.json();
  } catch (error) {
    throw new Fault(kind, `${url} is not JSON (${error.message}).`);
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
 * `sink` has `length`, `write(Uint8Array)`, `clear()` and `digest()` → sha256 in hex, and may hold a first part.
 * Throws Fault download or corrupt.
 */
export async function download(url, entry, sink, meter) {
  meter.skip(Math.min(sink.length, entry.bytes));
  for (let round = 0; ; round += 1) {
    if (sink.length > entry.bytes) restart(sink, meter, entry.bytes);
    await fill(url, entry, sink, meter);
    if ((await sink.digest()) === entry.sha256) return;
    restart(sink, meter, entry.bytes);
    if (round === 1) {
      throw new Fault("corrupt", `${entry.name} was downloaded twice and does not match the manifest's sha256.`);
    }
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

/** sha256 of `bytes` in lower-case hex by the browser's own code (secure contexts only). */
export async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
