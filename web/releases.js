// The releases of the site that the service worker keeps (service.js), as the store sees them. A release is a cache whose
// site.json is put into it last. Another tab or the service worker may remove one while it is looked at.

import { bytesOf } from "./places/cache.js";

/** What the names of the releases' caches begin with, for the site at `base` (URL). service.js says it once more. */
const prefix = (base) => `handbill ${base.pathname} `;

/** The caches of all releases, whole or not, the oldest first; none where the browser has no Cache API. */
export async function releases(base) {
  if (!self.caches) return [];
  const names = (await caches.keys()).filter((name) => name.startsWith(prefix(base)));
  return Promise.all(names.map((name) => caches.open(name)));
}

/** The manifests that lie in `release`, by the address that they have on the site at `base`. */
export async function manifestsIn(release, base) {
  const found = [];
  for (const request of await release.keys()) {
    const path = request.url.startsWith(base.href) ? request.url.slice(base.href.length) : "";
    if (!/^models\/[^/]+\/manifest\.json$/.test(path)) continue;
    const kept = await release.match(request);
    if (kept) found.push(await kept.json());
  }
  return found;
}

/** Bytes of all files of the releases, each as its copy in the cache has it. */
export async function releaseBytes(base) {
  let bytes = 0;
  for (const release of await releases(base)) {
    for (const request of await release.keys()) bytes += await bytesOf(release, request);
  }
  return bytes;
}

/** Remove all releases: the next visit needs the network. */
export async function removeReleases(base) {
  for (const name of await caches.keys()) if (name.startsWith(prefix(base))) await caches.delete(name);
}
