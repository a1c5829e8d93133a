// The service worker: keeps the site for visits without a network, and isolates it where the host sends no headers.
//
// A release of the site is a cache named after the hash of its site.json, which is put into it last: a cache without it
// is not whole and serves nobody. A page asks for `keep` once its model is ready, and names the files of ONNX Runtime Web
// that it uses, because a first visit has loaded them before this worker was there; a new release is then gathered beside
// the one in use, what is unchanged copied from it, each file verified by its sha256. It is whole when the page says
// `whole`: its store has then fetched what the model of this release has anew, so that nothing is taken over that would
// still need the network. The next page that opens while no other does takes it over, and the old one goes. What a page
// loads is always of one release; it loads nothing later. The weights are none of this: they lie where place.js says.

const SCOPE = new URL("./", self.registration.scope);
const PREFIX = `handbill ${SCOPE.pathname} `;
const AT_ONCE = 6;

/** Only loaded where a browser has use for it, and then kept: three builds of ONNX Runtime, licences. */
const ON_DEMAND = /^(ort|licences)\//;

/** Index.html's Content-Security-Policy, for scripts: a worker obeys the header that it came with, and only that. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self' 'unsafe-eval' 'wasm-unsafe-eval' blob:",
  "worker-src 'self' blob:",
  "connect-src 'self' blob:",
  "style-src 'self'",
  "img-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
];

const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

/** Between two visitors of a kiosk: of another process than the page, because it is not isolated. */
const FRESH = "fresh.html";

let gathering = null;

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("message", (event) => {
  const { kind, name, used = [] } = event.data ?? {}; // A page of an older release names none.
  if (kind === "keep") event.waitUntil(keep(event.source, used));
  if (kind === "whole") event.waitUntil(finish(name));
});

/**
 * Gather the site as the server has it now, with those ON_DEMAND that are `used`; `page` is told {gathered: {name, site}}
 * if that is a release of its own, {unkept: "full"} if the browser has no room for it.
 */
async function keep(page, used) {
  gathering ??= gather(used).finally(() => (gathering = null));
  try {
    const gathered = await gathering;
    if (gathered) page.postMessage({ gathered });
  } catch (error) {
    if (error.name === "QuotaExceededError") page.postMessage({ unkept: "full" });
    console.warn("The site is not kept for later:", error.message);
  }
}

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || !url.href.startsWith(SCOPE.href)) return;
  const name = url.pathname.slice(SCOPE.pathname.length) || "index.html";
  event.respondWith(answer(event.request, name));
});

/** From the release in use, else from the network. Kept answers go out as they lie there: V8 keeps their code with them. */
async function answer(request, name) {
  let release;
  try {
    if (request.mode === "navigate" && name === "index.html") await takeOver(request);
    release = await inUse();
    const copy = release && (await (await caches.open(release)).match(key(name)));
    if (copy) return copy;
  } catch (error) {
    release = null;
    console.warn(`What is kept of the site cannot be read (${error.message}): ${name} is asked of the network.`);
  }
  const response = isolated(await fetch(request), name);
  if (release && response.status === 200 && ON_DEMAND.test(name)) await keepOne(release, name, response);
  return response;
}

/** Put `response` into `release`, unless it is not the file `name` that the release lists, as while a site is uploaded. */
async function keepOne(release, name, response) {
  const { cache, files } = await kept(release);
  if (files[name]?.sha256 === (await digest(response))) await cache.put(key(name), response.clone());
}

const key = (name) => new URL(name, SCOPE).href;

/** `response`, the file `name`, with the headers that allow threads and, if it is a script, POLICY. */
function isolated(response, name) {
  if (response.type === "opaque" || response.type === "opaqueredirect" || response.status === 304) return response;
  const headers = new Headers(response.headers);
  for (const [header, value] of Object.entries(ISOLATION)) headers.set(header, value);
  if (name === FRESH) headers.delete("Cross-Origin-Opener-Policy"); // Whatever the host says: it is there to differ.
  if (/javascript/.test(headers.get("Content-Type"))) headers.set("Content-Security-Policy", POLICY.join("; "));
  for (const header of ["Content-Encoding", "Content-Length"]) headers.delete(header); // The body is decoded by now.
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

/** Names of the releases that are whole. The cache API lists caches in the order in which they were made. */
async function releases() {
  const whole = [];
  for (const name of await caches.keys()) {
    if (name.startsWith(PREFIX) && (await (await caches.open(name)).match(key("site.json")))) whole.push(name);
  }
  return whole;
}

/** The release that pages get now: the oldest that is whole. */
async function inUse() {
  return (await releases())[0];
}

/** Let the newest release take the place of the others, unless a page is open that may still load from them. */
async function takeOver(request) {
  const whole = await releases();
  if (whole.length < 2) return;
  const windows = await self.clients.matchAll({ type: "window" });
  const open = windows.filter(({ url }) => new URL(url).pathname !== new URL(FRESH, SCOPE).pathname); // That one becomes the page.
  const reloads = request.isReloadNavigation || request.cache === "no-cache" || request.cache === "reload";
  if (open.length > (reloads ? 1 : 0)) return;
  for (const name of whole.slice(0, -1)) await caches.delete(name);
}

/** What site.json is called in a release that is not whole yet. */
const LISTED = "site.json?gathered";

/** Fetch the site as the server has it now into a cache of its own; {name, site} of it, null if it is whole already. */
async function gather(used) {
  const response = await fetch(key("site.json"), { cache: "no-cache" });
  if (!response.ok) throw new Error(`site.json answered ${response.status}`);
  const text = await response.clone().text();
  const name = PREFIX + (await sha256(new TextEncoder().encode(text)));
  const whole = await releases();
  if (whole.includes(name)) return null;
  const before = await kept(whole.at(-1));
  const cache = await caches.open(name);
  const site = JSON.parse(text);
  const files = [];
  for (const [file, entry] of Object.entries(site.files)) {
    if (!ON_DEMAND.test(file) || used.includes(file) || (await before?.cache.match(key(file)))) files.push([file, entry]);
  }
  const lane = async () => {
    for (let next = files.shift(); next; next = files.shift()) await gatherOne(cache, ...next, before);
  };
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, lane));
    await cache.put(key(LISTED), isolated(response, LISTED));
  } catch (error) {
    files.length = 0; // The other lanes end with what they have in hand.
    if (error.name === "QuotaExceededError") await caches.delete(name); // Half a site is of no use, and takes the room.
    throw error;
  }
  return { name, site };
}

/** Let the release `name` be whole. */
async function finish(name) {
  const [current] = await releases();
  const listed = await caches.match(key(LISTED), { cacheName: name });
  if (!listed) return; // Whole by another tab's word, or removed meanwhile.
  const cache = await caches.open(name);
  await cache.put(key("site.json"), listed);
  await cache.delete(key(LISTED));
  for (const other of await caches.keys()) {
    const left = other.startsWith(PREFIX) && other !== name && other !== current;
    if (left) await caches.delete(other); // Never whole, or superseded before anybody saw it.
  }
}

/** {cache, files} of a release; files as in its site.json. */
async function kept(name) {
  if (!name) return null;
  const cache = await caches.open(name);
  return { cache, files: (await (await cache.match(key("site.json"))).json()).files };
}

async function gatherOne(cache, file, { sha256: wanted }, before) {
  if (await cache.match(key(file))) return; // Of an earlier attempt.
  if (before?.files[file]?.sha256 === wanted) {
    const same = await before.cache.match(key(file));
    if (same && (await digest(same)) === wanted) return void (await cache.put(key(file), isolated(same, file))); // Its headers may be older than this file.
  }
  const response = await fetch(key(file), { cache: "no-cache" });
  if (!response.ok) throw new Error(`${file} answered ${response.status}`);
  if ((await digest(response)) !== wanted) throw new Error(`${file} is not what site.json says; the site may be changing`);
  await cache.put(key(file), isolated(response, file));
}

/** The sha256 of what `response` carries, which can still be read. */
const digest = async (response) => sha256(await response.clone().arrayBuffer());

async function sha256(bytes) {
  const found = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
