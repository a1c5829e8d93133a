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
};
language.fill();

if (!globalThis.single) startStore(); // A page that is one file has its model inside.

function startStore() {
  const store = new Worker(new URL("store.js", import.meta.url), { type: "module", name: handbill.channel });
  store.addEventListener("error", (event) => {
    const channel = new BroadcastChannel(handbill.channel);
    channel.postMessage(JSON.stringify({ kind: "fault", fault: "internal", detail: `store.js: ${event.message}` }));
    channel.close();
  });
  store.postMessage({ slug: handbill.slug });
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
