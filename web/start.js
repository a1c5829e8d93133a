// First code of the page: names this tab's channel and starts the store, so that the weights download while the two
// Pythons boot. It is JavaScript because no Python is up yet.

import * as kept from "./kept.js";
import * as language from "./language.js";

const query = new URL(location.href).searchParams;

/** What the page and its tests share: the channel's name, and what the address asks for ("" where it asks nothing). */
globalThis.handbill = {
  // Not crypto.randomUUID, which plain http on a local network does not have.
  channel: `handbill-${Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("")}`,
  slug: query.get("model") ?? "",
  runtime: query.get("runtime") ?? (globalThis.single ? "cpu" : ""), // One file has no room for the other runtimes.
  kept,
  language,
  up: false, // page.py sets it.
  ready: false, // The model is.
};
language.fill();

if (!globalThis.single) { // A page that is one file has all of it inside.
  startStore();
  nameModel();
  keepSite();
}

function startStore() {
  const store = new Worker(new URL("store.js", import.meta.url), { type: "module", name: handbill.channel });
  store.addEventListener("error", (event) => {
    const channel = new BroadcastChannel(handbill.channel);
    channel.postMessage(JSON.stringify({ kind: "fault", fault: "internal", detail: `store.js: ${event.message}` }));
    channel.close();
  });
  store.postMessage({ slug: handbill.slug });
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
 * The service worker (service.js) keeps the site once the model is ready, when nobody waits for anything. A host that
 * sends no isolation headers needs it at once, for threads: it adds them from the first reload on.
 */
function keepSite() {
  const workers = navigator.serviceWorker;
  if (!isSecureContext || !workers) return;
  if (!crossOriginIsolated && !workers.controller) {
    workers.addEventListener("controllerchange", () => handbill.ready || location.reload());
    workers.register("service.js");
  }
  const listener = new BroadcastChannel(handbill.channel);
  listener.onmessage = async ({ data }) => {
    if (JSON.parse(data).kind !== "ready") return;
    handbill.ready = true;
    await workers.register("service.js");
    (await workers.ready).active.postMessage({ kind: "keep" });
  };
}

if (document.getElementById("kiosk")) import("./watchdog.js").then((watchdog) => (handbill.watchdog = watchdog));

// Until page.py is up nobody else can say what went wrong: a file that is missing, a browser that is too old.
function tell(event) {
  const reason = event.reason?.message ?? event.message;
  if (handbill.up || !reason) return;
  const alert = document.getElementById("alert-text");
  alert.textContent = document.getElementById("cannot-start").textContent.replace("{reason}", reason);
  document.getElementById("alert").hidden = false;
}
addEventListener("error", tell);
addEventListener("unhandledrejection", tell);
