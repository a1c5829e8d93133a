// Runs peak.c for `seconds` in a worker and answers with products a second; `start` is when to begin, in milliseconds
// since the epoch, so that several run at once.

self.onmessage = async ({ data: { seconds, start } }) => {
  const { instance } = await WebAssembly.instantiateStreaming(fetch("/peak/peak.wasm"));
  const { products, run } = instance.exports;
  run(100_000); // V8 compiles it twice, the second time with care.
  while (Date.now() < start);
  const began = performance.now();
  let rounds = 0;
  for (; performance.now() < began + seconds * 1000; rounds += 10_000) run(10_000);
  self.postMessage((rounds * products()) / ((performance.now() - began) / 1000));
};
