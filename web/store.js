// The store: a worker that chooses the model for this device (decide.js), downloads its files while Python boots and keeps
// them in a place (place.js).
//
// A file lies under its sha256, so what is whole is known by its name, a new export never mixes with an old one, and
// two models share what is equal. It is hashed as it comes; at later visits its name and size are trusted, and its bytes
// are read again only when the visitor has an answer (or none could be given) and waits for nothing.
// In:  {model, runtime} by postMessage from start.js (each "" for the best), and {release} where the service worker has
//      gathered one; `waiting`, `ready`, `ask`, `done`, `fault`, `survey` and `discard` on the channel.
// Out: `chosen`, `progress`, `stored`, `kept` and `fault` on the channel (ARCHITECTURE.md); `chosen` and the last one of
//      `progress`, `stored` and `fault` are said again at every `waiting`, because nobody may have been listening the first
//      time. By postMessage {used}, the runtimes' files by name, once the model is ready, and {ready: release} once all that
//      a release needs is kept.
//
// After the first answer comes what takes over where the graphics chip is lost (spare in choose.js), which may be when
// there is no network.

import { decide, manifestUrl } from "./decide.js";
import { download, fetchJson } from "./download.js";
import { Fault, asFault } from "./fault.js";
import { Holds } from "./holds.js";
import { Inventory } from "./inventory.js";
import { Meter } from "./meter.js";
import { openPlace } from "./place.js";
import { adapterEntries, fallback, ortFiles, spare } from "./sessions/choose.js";
import { sha256 } from "./sha256.js";

const BASE = new URL("./", import.meta.url);
const channel = new BroadcastChannel(self.name);
let chosen = null;
let last = null;
let wish = null;
let place = null;
let holds = null;
let inventory = null;
let manifest = null;
let kept = []; // The model's entries, once they lie in the place.
let checking = null; // The promise of a check under way.
let resting = Promise.resolve(); // Resolved while nobody waits for an answer.
let rest = () => {};
let reading = Promise.resolve(); // Settled while the check has no file open.
const deleted = new AbortController(); // Aborted once a model was deleted: what is open cannot be.
const deletion = new Promise((resolve) => deleted.signal.addEventListener("abort", resolve));

function say(message) {
  channel.postMessage(JSON.stringify(message));
}

function post(message) {
  last = message;
  say(message);
}

/** By content: two names for the same bytes are one file here. */
const distinct = (entries) => [...new Map(entries.map((entry) => [entry.sha256, entry])).values()];

async function here(entries) {
  const there = await Promise.all(entries.map((entry) => place.has(entry)));
  return entries.filter((_, i) => there[i]);
}

async function lacking(entries) {
  const there = new Set(await here(entries));
  return entries.filter((entry) => !there.has(entry));
}

/** Let go of those of `entries` that are none of what is kept. */
async function letGo(entries) {
  const used = new Set(kept.map(({ sha256: name }) => name));
  await holds.release(entries.map(({ sha256: name }) => name).filter((name) => !used.has(name)));
}

/** Have `entries` of the model `slug` in the place, told to `report`; "" or why they cannot be kept: "full". */
async function fetchAll(slug, entries, report) {
  await holds.hold(entries.map((entry) => entry.sha256));
  if ((await lacking(entries)).length === 0) return "";
  const sum = (list) => list.reduce((total, entry) => total + entry.bytes, 0);
  const meter = new Meter("download", sum(entries), report);
  meter.tell();
  return holds.alone(async () => {
    await inventory.tidy();
    const missing = await lacking(entries);
    if (!(await inventory.room(missing))) return "full";
    meter.skip(sum(entries) - sum(missing));
    const files = missing.map((entry) => ({
      entry,
      url: new URL(entry.name, manifestUrl(BASE, slug)).href,
      open: () => place.part(entry),
      keep: (part) => place.keep(entry, part),
    }));
    try {
      await download(files, meter);
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      // Those that have come whole, too: without the others they would only take room.
      await letGo(missing);
      for (const { sha256: name } of missing) await holds.unlessHeld(name, () => place.remove(name));
      return "full";
    }
    return "";
  });
}

async function load() {
  const site = await fetchJson(new URL("site.json", BASE).href);
  const { chosen: said, fault, entries, manifest: its, manifests } = await decide(site, wish, BASE);
  chosen = said;
  manifest = its;
  say(chosen);
  if (fault) throw fault;
  const { slug, refusal } = chosen;
  if (refusal) return null;
  place = navigator.locks ? await openPlace(BASE) : null;
  if (!place) return { kind: "stored", slug, where: "nowhere", why: "refused" };
  holds = new Holds(BASE);
  inventory = new Inventory(BASE, place, holds, manifests);
  const needed = distinct(entries);
  const why = await fetchAll(slug, needed, post);
  if (why) {
    await letGo(needed);
    return { kind: "stored", slug, where: "nowhere", why };
  }
  const more = await here([...adapterEntries(manifest), ...spare(manifest, chosen.sessions)]); // Of earlier visits.
  await holds.hold(more.map((entry) => entry.sha256));
  kept = distinct([...needed, ...more]);
  return { kind: "stored", slug, where: place.where, why: "" };
}

/** Have `entries` besides what is kept, told to `report`; "" or why they cannot be kept: "full". Throws what download does. */
async function keepToo(entries, report) {
  try {
    const why = await fetchAll(chosen.slug, entries, report);
    if (!why) kept = distinct([...kept, ...entries]);
    return why;
  } finally {
    await letGo(entries);
  }
}

/** Have the file `name`, an adapter that the visitor has just chosen; {why, fault, detail}: how that went. */
async function fetchAdapter(name) {
  try {
    const why = await keepToo(adapterEntries(manifest).filter((entry) => entry.name === name), say);
    return { why, fault: "", detail: "" };
  } catch (error) {
    const { fault, message } = asFault(error);
    return { why: "", fault, detail: message };
  }
}

/** Have what takes over from the graphics chip. Nobody has asked for it: where it cannot be had, a later visit tries again. */
async function fetchSpare() {
  try {
    await keepToo(spare(manifest, chosen.sessions), () => {});
  } catch (error) {
    console.warn("Without a network nothing could take over from the graphics chip yet:", error.message);
  }
}

/**
 * Fetch what a newer release of the site, which `name` is the cache of, needs of the model: it is used from then on. Throws
 * where it cannot be had or would not run here: the release in use, whose model is here, then stays.
 */
async function prepare({ name, site }) {
  if (!kept.length) return; // Nothing of this page's model is kept anyway.
  const cache = await caches.open(name);
  const read = async (url) => (await cache.match(url)).json();
  const { chosen: next, fault, entries, manifest: its } = await decide(site, wish, BASE, read);
  if (fault) throw fault;
  if (next.refusal) throw new Error(`its model does not run on this device (${next.refusal}).`);
  // What came after the first answer, or was chosen once, stays at hand.
  const names = new Set(kept.map((entry) => entry.name));
  const adapters = adapterEntries(its).filter((entry) => names.has(entry.name));
  const spared = spare(manifest, chosen.sessions).some((entry) => names.has(entry.name));
  const wanted = distinct([...entries, ...adapters, ...(spared ? spare(its, next.sessions) : [])]);
  try {
    if (await fetchAll(next.slug, wanted, () => {})) throw new Error("there is no room beside those in use.");
  } catch (error) {
    await letGo(wanted);
    throw error;
  }
}

/** sha256 of a kept file, null if it cannot be opened. */
async function digest(entry, pause) {
  let source;
  try {
    source = await place.read(entry);
  } catch {
    return null; // Removed meanwhile, in another tab; or in use there, in a browser where one at a time may read.
  }
  return sha256(source, pause).finally(() => source.close());
}

/** Read every kept file of the model again, once a visit, until one is deleted. What is damaged is removed and said. */
async function check() {
  const damaged = [];
  const pause = async () => {
    await Promise.race([resting, deletion]);
    deleted.signal.throwIfAborted();
  };
  for (const entry of kept) {
    reading = digest(entry, pause);
    const found = await reading.catch((error) => {
      if (!deleted.signal.aborted) throw error;
    });
    if (deleted.signal.aborted) break;
    if (found === null || found === entry.sha256) continue;
    damaged.push(entry.name);
    await place.remove(entry.sha256);
  }
  await resting; // A fault in mid-answer would be taken for the answer's.
  if (damaged.length) throw new Fault("damaged", `${damaged.join(", ")}.`);
}

function tell(error) {
  const fault = asFault(error);
  post({ kind: "fault", fault: fault.fault, detail: fault.message });
}

channel.onmessage = async ({ data }) => {
  const message = JSON.parse(data);
  const { kind } = message;
  if (kind === "waiting" && chosen) say(chosen);
  if (kind === "waiting" && last) post(last);
  if (kind === "ready") {
    const session = chosen.sessions.find(({ name }) => name === message.runtime.split(" ")[0]);
    self.postMessage({ used: [session, ...fallback(chosen.sessions)].flatMap(ortFiles) });
  }
  if (kind === "ask") resting = new Promise((resolve) => (rest = resolve));
  if (kind === "done" || kind === "fault") {
    rest();
    if (kept.length) checking ??= fetchSpare().then(check).then(() => holds.alone(() => inventory.tidy())).catch(tell);
  }
  if (kind === "fetch") say({ kind: "fetched", file: message.file, ...(await fetchAdapter(message.file)) });
  if (kind === "discard" && inventory) {
    if (message.item.startsWith("model ")) {
      deleted.abort();
      await reading.catch(() => {});
    }
    const refused = await inventory.discard(message.item);
    kept = kept.filter(({ sha256: name }) => holds.holds(name));
    say({ kind: "kept", ...(await inventory.survey()), refused });
  }
  if (kind === "survey" && inventory) say({ kind: "kept", ...(await inventory.survey()), refused: "" });
};

self.onmessage = async ({ data }) => {
  if (data.release) {
    await prepare(data.release).then(
      () => self.postMessage({ ready: data.release.name }),
      (error) => console.warn("A new release of the site waits:", error.message),
    );
    return;
  }
  wish = data;
  try {
    const stored = await load();
    if (stored) post(stored);
  } catch (error) {
    tell(error);
  }
};
