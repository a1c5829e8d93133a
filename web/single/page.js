// One file, the page's side: hands every file to the engine's worker as the parser comes by it, and starts the page.
// Inlined into the .html by build/single.py, after files.js and before the files.

globalThis.single = (() => {
  const REPORT_EVERY_MS = 200; // MicroPython draws each.
  const files = new Files();
  const names = new Set();
  const own = [];
  let done = 0;
  let told = -Infinity;
  let whole = false;

  function fromBase64(text) {
    return Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  }

  /** Take the piece of a file in the element before this script. `data-reader` says who needs it: page, engine or both. */
  function take() {
    const script = document.currentScript;
    const element = script.previousElementSibling;
    const { name, total, unpacked, reader } = element.dataset;
    const piece = { name, total: Number(total), unpacked: unpacked && Number(unpacked) };
    const bytes = fromBase64(element.textContent);
    element.firstChild.data = ""; // The browser collects removed nodes late, and with them their text.
    element.remove();
    script.remove();
    if (unpacked === undefined) tell(bytes.length);
    if (reader !== "engine") {
      names.add(name);
      own.push(files.take({ ...piece, bytes: bytes.slice() }));
    }
    if (reader !== "page") worker.postMessage({ ...piece, bytes }, [bytes.buffer]);
  }

  /** Say on the page's channel, five times a second, that `bytes` more of the weights are here. */
  function tell(bytes) {
    done += bytes;
    const now = performance.now();
    if (now - told < REPORT_EVERY_MS && done < weights) return;
    told = now;
    const message = { kind: "progress", stage: "open", done, total: weights, unit: "bytes", rate: null, seconds_left: null };
    if (handbill.channel) hear(handbill.channel, JSON.stringify(message));
  }

  /** The files of the page are here: start it, while those of the engine still come. */
  async function begin() {
    await Promise.all(own);
    const original = globalThis.fetch;
    globalThis.fetch = (address, options) => files.fetch(address, original, options);
    const imports = {};
    for (const name of [...names].filter((each) => /\.m?js$/.test(each))) {
      const text = new Blob([await files.read(name)], { type: "text/javascript" });
      imports[`handbill/${name}`] = imports[`./${name}`] = imports[`${SITE}${name}`] = URL.createObjectURL(text);
    }
    const map = Object.assign(document.createElement("script"), { type: "importmap", textContent: JSON.stringify({ imports }) });
    document.head.append(map);
    await import("handbill/start.js");
    await import("handbill/pyscript/core.js");
  }

  /** Called at the very end of the file. One that was cut short never gets there. */
  function end() {
    whole = true;
  }

  addEventListener("DOMContentLoaded", () => {
    if (whole) return;
    document.getElementById("alert-text").textContent = document.getElementById("damaged").textContent;
    document.getElementById("alert").hidden = false;
  });

  const side = document.getElementById("engine-side");
  const weights = Number(side.dataset.weights);
  const worker = new Worker(`data:text/javascript;base64,${side.textContent.trim()}`, { type: "module" });
  const { Channel, hear } = makeChannels((message) => worker.postMessage(message));
  globalThis.BroadcastChannel = Channel;
  worker.onmessage = ({ data }) => {
    if (data.channel) hear(data.channel, data.data);
  };
  /** What PyScript's `workers["engine"]` is elsewhere. */
  const engine = { start: async (channel) => worker.postMessage({ start: channel }) };
  return { take, begin, end, engine };
})();
