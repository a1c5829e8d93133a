// What a decoded token takes, for the bench's runtimes.

/** Medians between neighbouring `marks`: milliseconds and what WebGPU was asked for a token. */
export function perToken(marks) {
  const median = (name) => {
    const steps = marks.slice(1).map((mark, i) => mark[name] - marks[i][name]).sort((a, b) => a - b);
    return steps[steps.length >> 1] ?? 0;
  };
  const names = ["dispatches", "submits", "mappings", "mapped", "buffers"];
  return { milliseconds: median("time"), ...Object.fromEntries(names.map((name) => [name, median(name)])) };
}
