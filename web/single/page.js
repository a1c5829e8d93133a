// One file, the page's side: hands every file to the engine's worker as the parser comes by it, and starts the page.
// Inlined into the .html by build/single.py, after files.js and before the files.

globalThis.single = (() => {
  const files = new Files();
  const names = [];
  const own = [];
  let done = 0;
  let whole = false;

  function fromBase64(text) {
    return Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  }

  /** Take the file in the element before this script. `data-reader` says who needs it: page, engine or both. */
  function take() {
    const script = document.currentScript;
    const element = script.previousElementSibling;
    const { name, gzip, at, total, reader } = element.dataset;
    const piece = { name, gzip: gzip !== undefined, at: Number(at ?? 0), total: Number(total ?? 0) };
    const bytes = fromBase64(element.textContent);
    element.remove();
    script.remove();
    if (reader !== "engine") {
      names.push(name);
      own.push(files.take({ ...piece, bytes: bytes.slice() }));
    }
    if (total) tell(bytes.length);
    if (reader !== "page") worker.postMessage({ ...piece, bytes }, [bytes.buffer]);
  }

  /** Say on the page's channel that `bytes` more of the weights are here. */
  function tell(bytes) {
    done += bytes;
    const message = { kind: "progress", stage: "open", done, total: weights, unit: "bytes", rate: null, seconds_left: null };
    if (globalThis.handbill) hear(handbill.channel, JSON.stringify(message));
  }

  /** The files of the page are here: start it, while those of the engine still come. */
  async function begin() {
    await Promise.all(own);
    const original = globalThis.fetch;
    globalThis.fetch = (address, options) => files.fetch(address, original, options);
    const imports = {};
    for (const name of names.filter((each) => /\.m?js$/.test(each))) {
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
