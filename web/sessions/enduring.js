// A session that outlives its device: what the graphics chip loses, the next runtime takes over in mid-answer.

import { Fault, WrongOutput, asFault } from "../fault.js";

const PASSING = new Set(["device", "memory"]); // Fault kinds for which another runtime may do better.

/**
 * Open the first of `choices` (choose.js) that opens. `start(choice) → session` opens one; `moved(why, runtime)` is told
 * when another one than before has taken over: what went wrong ("wrong" for a device that computes garbage, else the
 * fault kind) and the runtime that it has now. `wrong(choice)` is told of what computes garbage and awaited. Throws what
 * the last one threw.
 */
export async function openFirst(choices, start, moved, wrong) {
  const session = new Enduring(choices, start, moved, wrong);
  await session.advance();
  return session;
}

/**
 * The session contract over whichever inner session works. A device that is lost (a laptop that slept, a driver that
 * was reset) is opened anew once before the next runtime has its turn. The tokens in the KV cache are kept as numbers;
 * a new session reads them again, so that the caller sees nothing but a step that took long.
 */
class Enduring {
  #choices;
  #start;
  #moved;
  #wrong;
  #inner = null;
  #facts = null; // {context, chunk, runtime} of the latest inner session, also while there is none.
  #tokens = []; // What the KV cache holds.
  #why = ""; // What went wrong since a session was last in place.
  #adapter = ""; // Which one of the manifest's is in use.
  #revived = false; // Whether the present choice was opened anew since the last step that succeeded.
  #closed = false;

  constructor(choices, start, moved, wrong) {
    this.#choices = [...choices];
    this.#start = start;
    this.#moved = moved;
    this.#wrong = wrong;
  }

  get context() {
    return this.#facts.context;
  }

  get chunk() {
    return this.#facts.chunk;
  }

  get length() {
    return this.#tokens.length;
  }

  get drafts() {
    return this.#inner?.drafts ?? 0;
  }

  get runtime() {
    return this.#inner?.runtime ?? this.#facts.runtime; // Its threads may have become fewer.
  }

  /** Open the first remaining choice that opens and can read what is in the KV cache; drop those that fail but the last. */
  async advance() {
    for (;;) {
      if (this.#closed) {
        await this.#drop();
        throw new Fault("internal", "The session is closed.");
      }
      const [choice] = this.#choices;
      try {
        this.#inner = await this.#start(choice);
        if (this.#closed) continue;
        const { context, chunk, runtime } = this.#inner;
        this.#facts = { context, chunk, runtime };
        if (this.#adapter) await this.#inner.adapter(this.#adapter);
        await this.#read(this.#tokens, 1);
        this.#tell();
        return;
      } catch (error) {
        const fault = asFault(error);
        if (fault.fault === "too_long") {
          // It opened, with less context than the one before: the conversation has to begin anew.
          this.rewind(0);
          this.#tell();
          throw fault;
        }
        console.warn(`The session "${choice.name}" did not open:`, fault);
        await this.#drop();
        if (fault instanceof WrongOutput) await this.#wrong(choice);
        if (this.#closed) continue;
        if (this.#choices.length === 1) throw fault;
        this.#choices.shift();
        this.#why ||= reason(fault);
      }
    }
  }

  /** Say which runtime has taken over, if one has. */
  #tell() {
    if (this.#why) this.#moved(this.#why, this.#facts.runtime);
    this.#why = "";
  }

  /** As the inner session's; another runtime takes over where this one's device or memory is gone. */
  async step(ids, positions = 1) {
    if (!this.#inner) await this.advance(); // The last one failed at the last step; by now it may do.
    for (;;) {
      try {
        const candidates = await this.#read(ids, positions);
        for (const id of ids) this.#tokens.push(id);
        this.#revived = false;
        return candidates;
      } catch (error) {
        const fault = asFault(error);
        const wrong = fault instanceof WrongOutput;
        if (wrong && !this.#closed) await this.#wrong(this.#choices[0]);
        const again = fault.fault === "device" && !wrong && !this.#revived;
        if (!PASSING.has(fault.fault) || !(again || this.#choices.length > 1)) {
          // On a device that failed nothing goes on; the next step opens it anew.
          if (fault.fault === "device") await this.#drop();
          else if (this.#inner?.length > this.length) this.#inner.rewind(this.length);
          throw fault;
        }
        await this.#drop();
        if (!again) this.#choices.shift();
        this.#revived = again;
        this.#why = reason(fault);
        await this.advance();
      }
    }
  }

  /** Step through `ids`, by the inner session's own chunk, which may be smaller than that of the one before. */
  async #read(ids, positions) {
    if (!ids.length) return null;
    const all = Int32Array.from(ids);
    const last = Math.max(positions, ((all.length - 1) % this.#inner.chunk) + 1);
    if (last > this.#inner.chunk) throw new Fault("internal", `Candidates for ${positions} positions were asked for.`);
    for (let first = 0; first < all.length - last; ) {
      const count = Math.min(this.#inner.chunk, all.length - last - first);
      await this.#inner.step(all.subarray(first, first + count));
      first += count;
    }
    return this.#inner.step(all.subarray(all.length - last), positions);
  }

  /** As the inner session's; the next one takes it along. */
  async adapter(name) {
    if (!this.#inner) await this.advance();
    await this.#inner.adapter(name);
    this.#adapter = name;
    this.#tokens.length = 0;
  }

  rewind(length) {
    this.#inner?.rewind(length);
    this.#tokens.length = length;
  }

  /** Which kernels a snapshot belongs to, `snapshot(length)` and `restore(bytes, ids)`: of sessions that have them. */
  get kernels() {
    return this.#inner?.kernels;
  }

  get snapshot() {
    return this.#inner?.snapshot && ((length) => this.#inner.snapshot(length));
  }

  restore(bytes, ids) {
    if (!this.#inner?.restore?.(bytes, ids)) return false;
    this.#tokens = Array.from(ids);
    return true;
  }

  async #drop() {
    const inner = this.#inner;
    this.#inner = null;
    // A session whose device is gone may not be able to say goodbye.
    await inner?.close()?.catch?.(() => {});
  }

  async close() {
    this.#closed = true;
    await this.#drop();
  }
}

/** What the page is told of a fault: its kind, or "wrong" of a device that computes garbage. */
const reason = (fault) => (fault instanceof WrongOutput ? "wrong" : fault.fault);
