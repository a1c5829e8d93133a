// Fills the session's shared memory from the files kept in OPFS, in a worker of its own: the engine's worker starts
// Python meanwhile. The session ends it once the weights are in place.

import { asFault } from "../fault.js";
import { KeptFiles } from "../files.js";
import { load } from "./cpu-load.js";

self.onmessage = async ({ data: { module, memory, plan, map, kept } }) => {
  try {
    const { exports } = new WebAssembly.Instance(module, { env: { memory } });
    await load({
      plan, map, memory, kernels: exports, files: new KeptFiles(kept),
      onFile: (done, total) => self.postMessage({ done, total }),
    });
    self.postMessage({ loaded: true });
  } catch (error) {
    const { fault, message } = asFault(error);
    self.postMessage({ fault, message });
  }
};
