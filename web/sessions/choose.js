// Which session runs the model here, and in which words the page says so. One pure function and the facts it needs.

/**
 * The sessions to try, best first; each {name, module, build, graph, threads, words}.
 *
 * `facts`: adapter (WebGPU's: "none", "software" or "hardware"), jspi (WebAssembly can suspend), isolated (threads are
 * allowed), cores, int4 (the site has our own kernels), plan (manifest.plan), graphs (manifest.graphs). `forced`:
 * "webgpu", "wasm", "cpu", or "" for the best. A software adapter is slower than the processor itself, so it has to be
 * forced.
 * Returns [] if nothing fits.
 */
export function choose(facts, forced = "") {
  const threads = facts.isolated ? useful(facts.cores) : 1;
  const many = threads > 1 ? `${threads} threads` : "one thread";
  const graphics = facts.adapter === "hardware" || (facts.adapter === "software" && forced === "webgpu");
  const all = [
    graphics && facts.graphs.webgpu && {
      name: "webgpu", module: "ort.js", build: facts.jspi ? "jspi" : "webgpu", graph: "webgpu", threads: 1,
      words: "graphics chip (WebGPU)",
    },
    facts.int4 && facts.plan && {
      name: "cpu", module: "cpu.js", build: "", graph: "", threads, words: `processor, ${many}`,
    },
    facts.graphs.wasm && {
      name: "wasm", module: "ort.js", build: "wasm", graph: "wasm", threads, words: `processor (WASM), ${many}`,
    },
  ];
  return all.filter((choice) => choice && (!forced || choice.name === forced));
}

/** Threads worth starting: all of few cores; of many, half, because a browser counts hyper-threads as cores. */
function useful(cores) {
  return cores <= 4 ? Math.max(1, cores) : Math.min(8, cores >> 1);
}
