// Plays web/sessions/enduring.js against sessions that fail when told to.

import { openFirst } from "../../web/sessions/enduring.js";
import { Fault, WrongOutput } from "../../web/fault.js";

console.warn = () => {}; // What fails is in `moved` as well.

/**
 * A session that notes what it reads; it throws `fails[n]` (a fault kind or "wrong") at its n-th step, takes at most
 * `chunk` ids and is called `becomes` after a step.
 */
class Scripted {
  constructor({ runtime, becomes = runtime, chunk = 4, context = 100, fails = {} }, log) {
    Object.assign(this, { runtime, becomes, chunk, context, fails, log, tokens: [], steps: 0, closed: false });
  }

  get length() {
    return this.tokens.length;
  }

  async step(ids, positions) {
    const failure = this.fails[this.steps++];
    if (failure === "wrong") throw new WrongOutput("device", "not a number");
    if (failure) throw new Fault(failure, `step ${this.steps} of ${this.runtime}`);
    if (this.length + ids.length > this.context) throw new Fault("too_long", "too long");
    if (ids.length > this.chunk) throw new Fault("internal", "more than a chunk");
    if (positions > ids.length) throw new Fault("internal", "more positions than ids");
    this.tokens.push(...ids);
    this.log.push(`${this.runtime} ${ids.join(" ")}`);
    this.runtime = this.becomes;
    return { ids: [this.tokens.length], positions };
  }

  async adapter(name) {
    if (name === "missing") throw new Fault("download", "missing");
    this.log.push(`${this.runtime} adapter ${name}`);
    this.tokens.length = 0;
  }

  rewind(length) {
    this.tokens.length = length;
  }

  restore(bytes, ids) {
    this.tokens = [...ids];
    return true;
  }

  close() {
    this.closed = true;
  }
}

/**
 * `choices`: names; `starts`: what each start in turn gives, a Scripted's settings or {refuses: fault kind or "wrong"},
 * after `wait` milliseconds; `moves`: [ids, positions] for a step, a number for a rewind, a name for an adapter, {restore:
 * ids} for a snapshot of these or {closing: ids} for a step in the middle of which the session is closed. What was read by
 * whom, who was told what, and the end.
 */
export async function play(choices, starts, moves) {
  const log = [];
  const moved = [];
  const wrong = [];
  const opened = [];
  const faults = [];
  let started = 0;
  const start = async ({ name }) => {
    const script = starts[started++];
    if (!script) throw new Fault("internal", "nothing more to start");
    if (script.wait) await new Promise((resolve) => setTimeout(resolve, script.wait));
    if (script.refuses === "wrong") throw new WrongOutput("device", "garbage");
    if (script.refuses) throw new Fault(script.refuses, `${name} refuses`);
    opened.push(new Scripted({ runtime: name, ...script }, log));
    return opened.at(-1);
  };
  let session;
  let last = null;
  try {
    session = await openFirst(
      choices.map((name) => ({ name })), start, (why, runtime) => moved.push(`${why}: ${runtime}`),
      async ({ name }) => wrong.push(name),
    );
    for (const move of moves) {
      if (typeof move === "number") session.rewind(move);
      else if (typeof move === "string") await session.adapter(move).catch((error) => faults.push(error.fault));
      else if (move.closing) {
        const step = session.step(Int32Array.from(move.closing)).catch((error) => faults.push(error.fault ?? error.message));
        await new Promise((resolve) => setTimeout(resolve, 20));
        await session.close();
        await step;
      } else if (move.restore) session.restore(null, move.restore);
      else last = await session.step(Int32Array.from(move[0]), move[1] ?? 1).catch((error) => {
        faults.push(error.fault ?? error.message);
        return null;
      });
    }
  } catch (error) {
    faults.push(error.fault);
  }
  const closed = opened.map((one) => one.closed);
  return { log, moved, wrong, faults, closed, last, length: session?.length, runtime: session?.runtime, inner: opened.at(-1)?.tokens };
}
