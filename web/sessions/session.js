// What every session does alike: keep to its bounds, and refuse what would break them (the contract: ARCHITECTURE.md).

import { Fault } from "../fault.js";

/** Tokens of context below which no KV cache is tried: it would not hold a question and its answer. */
export const LEAST_CONTEXT = 512;

/** Most positions that one step gives candidates for. */
export const ASKED = 16;

export class Session {
  #vocabulary;
  #adapters;
  #closed = false;

  /**
   * `context` and `chunk`: most tokens in the KV cache and in a step. `name` (cpu, wasm, webgpu) and `threads`:
   * where the model runs. `adapters`: what adapterTensors gives (adapter.js).
   */
  constructor({ vocabulary, context, chunk, name, threads = 1, adapters }) {
    this.#vocabulary = vocabulary;
    this.#adapters = adapters;
    this.context = context;
    this.chunk = Math.min(chunk, context);
    this.length = 0;
    this.runtime = `${name} ${threads}`;
  }

  /**
   * Append `ids` (Int32Array, 1 to `chunk`) to the KV cache. The candidates of the last `positions` tokens (at most ASKED),
   * position after position: {ids: Int32Array, logits: Float32Array}, largest first. On an error `length` is as before.
   * Throws Fault too_long; what `compute(ids, positions, total)` throws, which each session has of its own; and `garbled`
   * where a logit is no finite number.
   */
  async step(ids, positions = 1) {
    const total = this.#admit(ids, positions);
    const candidates = await this.compute(ids, positions, total);
    if (!candidates.logits.every(Number.isFinite)) throw this.garbled;
    this.length = total;
    return candidates;
  }

  /** The Fault of logits that are no finite numbers: on a processor, whose arithmetic can be relied on, the model's. */
  get garbled() {
    return new Fault("manifest", "The model computes no finite numbers; export it again.");
  }

  /** Tokens in the KV cache once `ids` are appended. Throws Fault too_long, or internal for what no caller may ask. */
  #admit(ids, positions) {
    const total = this.length + ids.length;
    if (this.#closed) throw new Fault("internal", "The session is closed.");
    if (total > this.context) throw new Fault("too_long", `${total} tokens do not fit into ${this.context}.`);
    if (ids.length < 1 || ids.length > this.chunk) throw new Fault("internal", `A step of ${ids.length} tokens.`);
    if (positions < 1 || positions > Math.min(ids.length, ASKED)) {
      throw new Fault("internal", `Candidates for ${positions} of ${ids.length} positions were asked for.`);
    }
    for (const id of ids) if (!(id >= 0 && id < this.#vocabulary)) throw new Fault("internal", `There is no token ${id}.`);
    return total;
  }

  /**
   * Compute with the manifest's adapter `name`, "" for none; the KV cache is empty then. Throws Fault manifest, and what
   * reading its file throws; the one before then stays.
   */
  async adapter(name) {
    this.adapt(await this.#adapters(name)); // Each session's own: put these tensors into the graph's branches.
    this.rewind(0);
  }

  /** Forget all but the first `length` tokens; what lies behind them is never read and is written over. */
  rewind(length) {
    if (!(length >= 0 && length <= this.length)) {
      throw new Fault("internal", `Cannot rewind ${this.length} tokens to ${length}.`);
    }
    this.length = length;
  }

  close() {
    this.#closed = true;
  }
}
