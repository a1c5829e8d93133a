// A kiosk's watchdog: loads the page anew when its Python or the engine's worker no longer shows a sign of life, or when
// page.py asks for it. In JavaScript, because it is Python that it watches. Times are performance.now(): the clock of
// the wall may be moved.

const PING_MS = 5000;
const SILENT_MS = 30_000; // A slow device may compute one step for many seconds, and hears nothing meanwhile.
const BOOT_MS = 300_000; // Until the engine first says something, and from one word to the next while it boots.
const PAUSES_MS = [2000, 10_000, 60_000, 300_000]; // Before the first, second … revival without a good spell between.
const GOOD_SPELL_MS = 600_000;
const COUNT = "handbill revivals";
// What the engine alone says. A visitor who presses Stop is no sign of its life, nor is what the store answers to another.
const ENGINES = new Set(["booted", "ready", "moved", "progress", "fetch", "piece", "done", "adapted", "forgotten", "pong"]);

const channel = new BroadcastChannel(handbill.channel);
const started = performance.now();
let looked = started;
let heard = started;
let booted = false;
let reviving = false;

/** page.py notes here that it is alive. */
handbill.ticked = started;

channel.onmessage = ({ data }) => {
  const { kind, stage } = JSON.parse(data);
  if (kind === "ready") booted = true;
  const stores = booted && stage === "download"; // Until then a slow line may take all the time that Python needs.
  if (ENGINES.has(kind) && !stores) heard = performance.now();
};

setInterval(() => {
  const now = performance.now();
  const slept = now - looked > 3 * PING_MS; // The device slept, or this tab did: nobody is to blame for the silence.
  looked = now;
  if (slept) {
    heard = now;
    handbill.ticked = now;
  }
  channel.postMessage(JSON.stringify({ kind: "ping" }));
  if (now - started > GOOD_SPELL_MS) sessionStorage.removeItem(COUNT);
  const patience = booted ? SILENT_MS : BOOT_MS;
  if (now - heard > patience || now - handbill.ticked > patience) revive();
}, PING_MS);

/** Load the page anew, after a pause that grows where that did not help. */
export async function revive() {
  if (reviving) return;
  reviving = true;
  const count = Number(sessionStorage.getItem(COUNT) ?? 0);
  sessionStorage.setItem(COUNT, count + 1);
  const pause = PAUSES_MS[Math.min(count, PAUSES_MS.length - 1)];
  do await new Promise((resolve) => setTimeout(resolve, pause));
  while (!(await renew()));
}

/** A visitor is gone, and the page worked: load it anew, if it is to be had. */
export function leave() {
  if (!reviving) sessionStorage.removeItem(COUNT);
  return renew();
}

/**
 * Load the page anew if it is to be had: a browser's own error page would be a way out. Whether it is. By way of
 * fresh.html, it comes into a process of its own, and what the last visitor left in memory goes with the one before.
 */
async function renew() {
  const attract = document.getElementById("attract");
  attract.inert = true; // Who began now would be interrupted in a moment.
  if (location.protocol === "file:") {
    location.reload();
    return true;
  }
  if (await handbill.answers(location.href, "fresh.html")) {
    location.replace(`fresh.html${location.search}`);
    return true;
  }
  attract.inert = false;
  if (!attract.hidden) document.getElementById("begin").focus();
  return false;
}
