// First code of the page: names this tab's channel and starts the store, so that the weights download while the two
// Pythons boot. It is JavaScript because no Python is up yet.

import * as kept from "./kept.js";
import * as language from "./language.js";

if (!globalThis.handbill) await import("./boot.js"); // It did not come the first time.
const query = new URL(location.href).searchParams;

// The channel's name, and what the address asks for ("" where it asks nothing).
Object.assign(handbill, {
  // Not crypto.randomUUID, which plain http on a local network does not have.
  channel: `handbill-${Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("")}`,
  slug: query.get("model") ?? "",
  runtime: query.get("runtime") ?? (globalThis.single ? "cpu" : ""), // One file has no room for the other runtimes.
  kept,
  language,
});
language.fill();

if (!globalThis.single) { // A page that is one file has all of it inside.
  const store = startStore();
  nameModel();
  keepSite(store);
  askToKeep();
}

function startStore() {
  const store = new Worker(new URL("store.js", import.meta.url), { type: "module", name: handbill.channel });
  // Without words where a file of it does not come.
  store.addEventListener("error", ({ message }) => {
    handbill.failed(`store.js: ${message ?? "it or what it imports did not come."}`);
  });
  store.postMessage({ model: handbill.slug, runtime: handbill.runtime });
  return store;
}

/**
 * Ask the browser not to clear what is kept, once a download begins: before, there is nothing to keep, and after it the
 * quota, which some browsers raise with their consent, has been counted. Chromium and Safari decide by themselves; Firefox
 * asks the visitor, and the download does not wait for the answer.
 */
function askToKeep() {
  const listener = new BroadcastChannel(handbill.channel);
  listener.onmessage = ({ data }) => {
    const { kind, stage } = JSON.parse(data);
    if (kind !== "progress" || stage !== "download") return;
    listener.close();
    navigator.storage?.persist?.().catch(console.warn);
  };
}

// PyScript starts the engine's worker; python.mjs, which it takes for the interpreter, opens this model meanwhile.
function nameModel() {
  const engine = document.querySelector("script[name=engine]");
  const config = JSON.parse(engine.getAttribute("config"));
  const interpreter = new URL(config.interpreter, location.href);
  interpreter.search = new URLSearchParams({ channel: handbill.channel, slug: handbill.slug, runtime: handbill.runtime });
  config.interpreter = interpreter.href; // PyScript completes only addresses that end in .mjs.
  engine.setAttribute("config", JSON.stringify(config));
}

/**
 * The service worker (service.js) keeps the site once the model is ready, when nobody waits for anything; `store` says
 * which files of a runtime that takes. It then fetches what the model has anew in a release that was gathered, and the
 * release is whole. A host that sends no isolation headers needs the worker at once, for threads: it adds them from the
 * first reload on.
 */
function keepSite(store) {
  const workers = navigator.serviceWorker;
  // Isolated as the page, it would live in the page's process and keep it beyond a kiosk's visitor (fresh.html). serve.py
  // sends it so if it is asked for apart; a process more is what that takes.
  const script = document.getElementById("kiosk") ? "service.js?apart" : "service.js";
  if (!isSecureContext || !workers) return;
  if (!crossOriginIsolated && !workers.controller) {
    workers.addEventListener("controllerchange", () => handbill.ready || location.reload());
    workers.register(script).catch(console.warn); // Then it stays at one thread.
  }
  const channel = new BroadcastChannel(handbill.channel);
  workers.addEventListener("message", ({ data: { gathered, unkept } }) => {
    if (gathered) store.postMessage({ release: gathered });
    if (unkept) channel.postMessage(JSON.stringify({ kind: "unkept", why: unkept }));
  });
  store.addEventListener("message", async ({ data: { used, ready } }) => {
    if (used) await workers.register(script);
    (await workers.ready).active.postMessage(used ? { kind: "keep", used } : { kind: "whole", name: ready });
  });
}

if (document.getElementById("kiosk")) import("./watchdog.js").then((watchdog) => (handbill.watchdog = watchdog));
