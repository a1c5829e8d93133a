// One file on its way from the server into a part (place.js): asked for piece by piece, resumed at the byte where a
// connection broke, hashed in order as the pieces come, kept once its sha256 is right.

import { Fault } from "./fault.js";
import { hasher } from "./sha256.js";

const ATTEMPTS = 8; // Without a byte between them: with the pauses, a minute.
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 30_000;
const SILENT_MS = 15_000; // A connection without a byte for so long is given up: nothing else would say that it is dead.
const PASSING = new Set([408, 425, 429]);

/** Whether an answer of that status says nothing about the file, which may be had a moment later. */
export const isPassing = (status) => status >= 500 || PASSING.has(status);

export class Transfer {
  #url;
  #meter;
  #stop; // AbortSignal: somebody else's fault ends this file too.
  #changed; // Called when there may be something to claim that was not there before.
  #state = "new"; // new, opening, coming, checking, done
  #hands = new Set(); // Pieces that are being fetched.
  #ranged = null; // Whether the server gives ranges of this file; null until it has answered.
  #unanswered = 0; // Requests without an answer, since the last one with one.
  #round = 1;
  #hashed = 0;
  #hash = null;
  #hashing = false;

  /** `entry` {name, bytes, sha256}; `open()` gives its part, `keep(part)` makes the part the file. */
  constructor({ entry, url, open, keep }, { meter, stop, changed }) {
    this.entry = entry;
    this.open = open;
    this.keep = keep;
    this.#url = url;
    this.#meter = meter;
    this.#stop = stop;
    this.#changed = changed;
  }

  get done() {
    return this.#state === "done";
  }

  /** Work on this file that nobody else does: a function whose promise may throw a Fault; null if there is none now. */
  claim() {
    if (this.#state === "new") {
      this.#state = "opening";
      return () => this.#begin();
    }
    if (this.#state !== "coming") return null;
    const { pieces } = this.part;
    if (this.#hands.size && !this.#ranged) return null; // One request, which may bring all of it.
    const piece = pieces.filled.findIndex((_, i) => !pieces.isWhole(i) && !this.#hands.has(i));
    if (piece >= 0) {
      this.#hands.add(piece);
      return () => this.#fetch(piece).finally(() => this.#hands.delete(piece));
    }
    if (this.#hands.size) return null;
    this.#state = "checking";
    return () => this.#check();
  }

  /** Let go of what is open. */
  close() {
    if (this.#state !== "done") this.part?.close();
  }

  async #begin() {
    this.#hash = await hasher();
    this.part = await this.open();
    this.#meter.skip(this.part.pieces.done);
    await this.#advance();
    this.#state = "coming";
  }

  async #check() {
    await this.#advance();
    if (this.#hash.digest() === this.entry.sha256) {
      await this.keep(this.part);
      this.#state = "done";
      return;
    }
    if (this.#round === 2) {
      throw new Fault("corrupt", `${this.entry.name} was downloaded twice and does not match the manifest's sha256.`);
    }
    this.#round = 2;
    this.#meter.skip(-this.part.pieces.done);
    await this.part.clear();
    this.#hash = await hasher();
    this.#hashed = 0;
    this.#state = "coming";
  }

  /** Hash what has come without a gap. */
  async #advance() {
    if (this.#hashing) return; // Somebody is at it, and will come by what there is now.
    this.#hashing = true;
    const buffer = new Uint8Array(Math.min(1 << 20, this.entry.bytes));
    for (let left; (left = this.part.pieces.front - this.#hashed) > 0; ) {
      const view = buffer.subarray(0, Math.min(left, buffer.length));
      await this.part.read(view, this.#hashed);
      this.#hash.update(view);
      this.#hashed += view.length;
    }
    this.#hashing = false;
  }

  /** Have `piece` whole. Attempts are counted anew whenever bytes came. */
  async #fetch(piece) {
    const { pieces } = this.part;
    for (let attempt = 0; !pieces.isWhole(piece); ) {
      const before = pieces.filled[piece];
      const { reason, pause } = await this.#request(piece).catch((error) => {
        if (error instanceof Fault || error.name === "QuotaExceededError") throw error;
        return { reason: error.message };
      });
      if (this.#stop.aborted) return;
      if (pieces.isWhole(piece)) break;
      attempt = pieces.filled[piece] > before ? 1 : attempt + 1;
      if (attempt >= ATTEMPTS) {
        throw new Fault("download", `${this.entry.name} stopped at ${pieces.done} of ${pieces.bytes} bytes (${reason}).`);
      }
      await this.#pause(pause ?? Math.min(FIRST_PAUSE_MS * 2 ** (attempt - 1), LONGEST_PAUSE_MS));
      if (this.#stop.aborted) return;
    }
    await this.#advance();
  }

  /** One request for the rest of `piece`; {reason, pause}: why it ended early, and how long the server needs. */
  async #request(piece) {
    const { pieces } = this.part;
    const from = pieces.start(piece) + pieces.filled[piece];
    const end = pieces.start(piece) + pieces.size(piece);
    const all = from === 0 && end === pieces.bytes; // Without a range, a host may send it compressed.
    // Some hosts answer a range with what no browser can decode. Where none was ever answered, every third goes without.
    const whole = all || this.#ranged === false || (this.#ranged === null && this.#unanswered % 3 === 2);
    const headers = whole ? {} : { Range: `bytes=${from}-${end - 1}` };
    const watch = new Watch(this.#stop);
    try {
      // `no-store`: the store keeps the bytes itself, and a second copy in the HTTP cache would double the space.
      this.#unanswered += 1;
      const response = await fetch(this.#url, { cache: "no-store", headers, signal: watch.signal });
      this.#unanswered = 0;
      if (isPassing(response.status)) return refused(response);
      const ranged = this.#answered(response, from);
      if (!all) {
        this.#ranged = ranged === true;
        this.#changed();
      }
      if (ranged === null) return { reason: "the server gives no ranges that can be used", pause: 0 };
      const body = response.body.getReader();
      const [begin, close] = ranged ? [from, end] : [0, pieces.bytes];
      return { reason: await this.#receive(body, begin, close, watch) };
    } finally {
      watch.end();
    }
  }

  /** Whether `response` is the file from `from` on, rather than from its first byte; null if it is of no use. */
  #answered(response, from) {
    const { name, bytes } = this.entry;
    const [, first, total] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(response.headers.get("Content-Range") ?? "") ?? [];
    const [, size] = /^bytes \*\/(\d+)$/.exec(response.headers.get("Content-Range") ?? "") ?? [];
    const other = size ?? total;
    if (other !== undefined && other !== "*" && Number(other) !== bytes) {
      throw new Fault("corrupt", `${name} has ${other} bytes on the server, and ${bytes} in the manifest.`);
    }
    if (response.status !== 200 && response.status !== 206 && response.status !== 416) {
      throw new Fault("download", `${name} is missing: the server answered ${response.status}.`);
    }
    // A range of a file that the host compressed is a range of other bytes.
    const coded = (response.headers.get("Content-Encoding") ?? "identity") !== "identity";
    if (response.status === 416 || (response.status === 206 && (Number(first) !== from || coded))) return null;
    return response.status === 206;
  }

  /** Write what comes from the file's byte `at` on, as far as `end`; why it ended, as text. */
  async #receive(reader, at, end, watch) {
    while (at < end) {
      const { done, value } = await reader.read();
      if (done) return "the connection ended early";
      watch.renew();
      this.#meter.add(await this.part.write(value.subarray(0, end - at), at));
      at += value.length;
    }
    await reader.cancel(); // Longer than the manifest says: the sha256 decides.
    return "";
  }

  /** Wait `ms`, or until the network is said to be back. */
  #pause(ms) {
    if (ms) this.#meter.wait(ms);
    return new Promise((resolve) => {
      const over = new AbortController();
      const go = () => {
        clearTimeout(timer);
        over.abort();
        resolve();
      };
      const timer = setTimeout(go, ms);
      self.addEventListener("online", go, { signal: over.signal });
      this.#stop.addEventListener("abort", go, { signal: over.signal });
    });
  }
}

/** {reason, pause} of an answer that refuses for now; the pause in milliseconds if the server names one. */
async function refused(response) {
  await response.body?.cancel();
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  const pause = seconds >= 0 ? Math.min(1000 * seconds, LONGEST_PAUSE_MS) : undefined;
  return { reason: `the server answered ${response.status}`, pause };
}

/** A `signal` that aborts a request when `stop` does, or when renew() was not called for SILENT_MS. */
class Watch {
  #silent = new AbortController();

  constructor(stop) {
    this.signal = AbortSignal.any([stop, this.#silent.signal]);
    this.renew();
  }

  renew() {
    clearTimeout(this.timer);
    const why = new Error(`no byte came for ${SILENT_MS / 1000} s`);
    this.timer = setTimeout(() => this.#silent.abort(why), SILENT_MS);
  }

  end() {
    clearTimeout(this.timer);
  }
}
