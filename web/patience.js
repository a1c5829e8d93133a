// Asking again, where that may help.

import { asFault } from "./fault.js";

const PATIENCE_MS = 20_000;
const PAUSE_MS = 50;
const MOMENT_MS = 1000; // For a host that was overloaded.

/** What `open` gives, asked again for a while where somebody else has the file open (NoModificationAllowedError). */
export async function patiently(open) {
  for (const end = performance.now() + PATIENCE_MS; ; ) {
    try {
      return await open();
    } catch (error) {
      if (error.name !== "NoModificationAllowedError" || performance.now() > end) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}

/** What `bring` brings, asked for once more where a file of the page did not come. Throws Fault, start if it never came. */
export async function twice(bring) {
  for (let last = false; ; last = true) {
    try {
      return await bring();
    } catch (error) {
      const fault = asFault(error);
      if (last || fault.fault !== "start") throw fault;
      console.warn("Asked for once more:", fault.message);
    }
    await new Promise((resolve) => setTimeout(resolve, MOMENT_MS));
  }
}
