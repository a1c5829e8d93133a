// The graphics device that WebGPU sessions use, one after the other, and what goes wrong on it.

import { Fault, asFault } from "../fault.js";

const FEATURES = ["shader-f16", "subgroups"]; // What ORT's kernels make use of where an adapter has it.
const REPORT_MS = 100; // Between what a lost device makes fail and the news that it is lost.

let spare = null; // What a closed session left without a fault.

/**
 * The device for a session that opens: the one that an earlier session has given back, or else a new one. ORT Web 1.30
 * never lets go of a device that it was given (0.4 MB each, measured), so sessions that come and go have to share one.
 * Throws Fault device.
 */
export async function borrow() {
  const graphics = spare;
  spare = null;
  if (graphics && !graphics.fault) return graphics;
  graphics?.device.destroy();
  return new Graphics(await requestDevice());
}

/** A device with all that the adapter gives: ORT's kernels choose by these limits, and a KV cache wants large buffers. */
async function requestDevice() {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Fault("device", "There is no graphics adapter.");
  const requiredLimits = {};
  for (const name in adapter.limits) requiredLimits[name] = adapter.limits[name];
  return adapter.requestDevice({ requiredFeatures: FEATURES.filter((name) => adapter.features.has(name)), requiredLimits });
}

class Graphics {
  #lost = null; // A Fault.
  #reported = null; // The first Fault that the device reported by itself.
  #interrupt = () => {}; // Ends what `during` waits for.

  constructor(device) {
    this.device = device;
    device.lost.then(({ message }) => {
      this.#lost = new Fault("device", `The graphics device was lost (${message || "no reason was given"}).`);
      this.#interrupt(this.#lost);
    });
    device.addEventListener("uncapturederror", ({ error }) => {
      const kind = error instanceof GPUOutOfMemoryError ? "memory" : "device";
      this.#reported ??= new Fault(kind, `The graphics device reports: ${error.message}`);
    });
    // Dawn throws where a buffer that it fills has no room in this process, and ORT goes on with no word of it.
    const create = device.createBuffer.bind(device);
    device.createBuffer = (wanted) => {
      try {
        return create(wanted);
      } catch (error) {
        this.#reported ??= new Fault("memory", `There is no memory for ${wanted.size} bytes: ${error.message}`);
        throw error;
      }
    };
  }

  /** What went wrong on the device so far, as a Fault; null for nothing. */
  get fault() {
    return this.#lost ?? this.#reported;
  }

  /**
   * What the Promise `work` gives. Throws a Fault memory or device: the device's own where there is one, which says more
   * than ORT's. The device goes to no other session then.
   */
  async during(work) {
    work.catch(() => {}); // Where the device is lost, ORT's own error comes later.
    try {
      const result = await new Promise((resolve, reject) => {
        this.#interrupt = reject;
        if (this.#lost) reject(this.#lost);
        work.then(resolve, reject);
      });
      if (this.fault) throw this.fault;
      return result;
    } catch (error) {
      if (!this.#lost) await new Promise((resolve) => setTimeout(resolve, REPORT_MS));
      const { fault, message } = asFault(error);
      this.#reported ??= new Fault(fault === "memory" ? fault : "device", message);
      throw this.fault;
    }
  }

  /** For the next session; a device on which something went wrong is destroyed, and what is left on it with it. */
  giveBack() {
    if (!this.fault && !spare) spare = this;
    else this.device.destroy();
  }
}
