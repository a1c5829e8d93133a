// The service worker: keeps the site for visits without a network, and isolates it where the host sends no headers.
//
// A release of the site is a cache named after the hash of its site.json, which is put into it last: a cache without it
// is not whole and serves nobody. A page asks for `keep` once its model is ready; a new release is then gathered beside
// the one in use, what is unchanged copied from it, each file verified by its sha256. The next page that opens while no
// other does takes it over, and the old one goes. What a page loads is always of one release; it loads nothing later.
// The weights are none of this: the store keeps them in OPFS.

const SCOPE = new URL("./", self.registration.scope);
const PREFIX = `handbill ${SCOPE.pathname} `;
const AT_ONCE = 6;

/** Only loaded where a browser has use for it, and then kept as it comes: three builds of ONNX Runtime, licences. */
const ON_DEMAND = /^(ort|licences)\//;

const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

let gathering = null;

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("message", (event) => {
  if (event.data?.kind !== "keep") return;
  gathering ??= gather().catch((error) => console.warn("The site is not kept for later:", error.message)).finally(() => {
    gathering = null;
  });
  event.waitUntil(gathering);
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || !url.href.startsWith(SCOPE.href)) return;
  const name = url.pathname.slice(SCOPE.pathname.length) || "index.html";
  event.respondWith(answer(event.request, name));
});

/** From the release in use, else from the network. Kept answers go out as they lie there: V8 keeps their code with them. */
async function answer(request, name) {
  if (request.mode === "navigate" && name === "index.html") await takeOver(request);
  const release = await inUse();
  if (release) {
    const kept = await (await caches.open(release)).match(key(name));
    if (kept) return kept;
  }
  const response = isolated(await fetch(request));
  if (release && response.ok && response.status === 200 && ON_DEMAND.test(name)) {
    await (await caches.open(release)).put(key(name), response.clone());
  }
  return response;
}

const key = (name) => new URL(name, SCOPE).href;

/** `response` with the headers that allow threads. */
function isolated(response) {
  if (response.type === "opaque" || response.type === "opaqueredirect" || response.status === 304) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
  for (const name of ["Content-Encoding", "Content-Length"]) headers.delete(name); // The body is decoded by now.
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
  const open = await self.clients.matchAll({ type: "window" });
  const reloads = request.isReloadNavigation || request.cache === "no-cache" || request.cache === "reload";
  if (open.length > (reloads ? 1 : 0)) return;
  for (const name of whole.slice(0, -1)) await caches.delete(name);
}

/** Fetch the site as the server has it now into a cache of its own. */
async function gather() {
  const response = await fetch(key("site.json"), { cache: "no-cache" });
  if (!response.ok) throw new Error(`site.json answered ${response.status}`);
  const text = await response.clone().text();
  const name = PREFIX + (await sha256(new TextEncoder().encode(text)));
  const whole = await releases();
  if (whole.includes(name)) return;
  const before = await kept(whole.at(-1));
  const cache = await caches.open(name);
  const files = [];
  for (const [file, entry] of Object.entries(JSON.parse(text).files)) {
    if (!ON_DEMAND.test(file) || (await before?.cache.match(key(file)))) files.push([file, entry]);
  }
  const lane = async () => {
    for (let next = files.shift(); next; next = files.shift()) await gatherOne(cache, ...next, before);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, lane));
  await cache.put(key("site.json"), isolated(response));
  for (const other of await caches.keys()) {
    const left = other.startsWith(PREFIX) && other !== name && other !== whole[0];
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
    if (same) return void (await cache.put(key(file), same));
  }
  const response = await fetch(key(file), { cache: "no-cache" });
  if (!response.ok) throw new Error(`${file} answered ${response.status}`);
  const found = await sha256(await response.clone().arrayBuffer());
  if (found !== wanted) throw new Error(`${file} is not what site.json says; the site may be changing`);
  await cache.put(key(file), isolated(response));
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
