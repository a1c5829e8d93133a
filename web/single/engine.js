// One file, the engine's side: a worker that has Pyodide run engine.py over files that the page hands it. PyScript's own
// worker cannot be had on file://, so this gives engine.py the little of PyScript that it uses.

const files = new Files();
const original = globalThis.fetch;
globalThis.fetch = (address, options) => files.fetch(address, original, options);
globalThis.handbillImport = async (address) => import(await files.link(files.nameOf(address)));
globalThis.handbillFiles = files;
const { Channel, hear } = makeChannels((message) => postMessage(message));
globalThis.BroadcastChannel = Channel;

async function boot() {
  const [{ loadPyodide }, model] = await Promise.all(
    ["python.mjs", "model.js"].map((name) => handbillImport(`${SITE}${name}`)),
  );
  const text = new TextDecoder();
  const pyodide = await loadPyodide({
    lockFileContents: text.decode(await files.read("pyodide/pyodide-lock.json")),
  });
  pyodide.registerJsModule("pyscript", { js_modules: { model } });
  await pyodide.runPythonAsync(text.decode(await files.read("engine.py")));
  return pyodide.globals.get("start");
}

/** What the store would have chosen: the one model there is, by our own kernels. */
async function choice() {
  const { decide } = await handbillImport(`${SITE}decide.js`);
  const site = await (await fetch(`${SITE}site.json`)).json();
  return (await decide(site, { model: "", runtime: "cpu" }, SITE)).chosen;
}

const started = boot();

onmessage = async ({ data }) => {
  if (data.name) files.take(data);
  else if (data.channel) hear(data.channel, data.data);
  else if (data.start) {
    const store = new Channel(data.start);
    const chosen = choice();
    store.onmessage = async ({ data: text }) => {
      if (JSON.parse(text).kind !== "waiting") return;
      store.postMessage(JSON.stringify(await chosen));
      store.postMessage(JSON.stringify({ kind: "stored", slug: (await chosen).slug, where: "inside", why: "" }));
    };
    await (await started)(data.start);
  }
};
