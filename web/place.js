// Where this browser keeps a site's files between visits, by their sha256.
//
// A place has `where` ("opfs" or "cache"), has(entry), read(entry) → {size, read(view, at) → bytes read, close()},
// part(entry) → the file while it comes, keep(entry, part), remove(sha256) and list() → Map(sha256 → bytes there). Its
// calls give promises; an entry is {sha256, bytes}. A part has `pieces` (pieces.js), write(bytes, at) → how many of them
// were new, read(view, at), clear() and close(); its calls may give promises.

import { openCache } from "./places/cache.js";
import { openOpfs } from "./places/opfs.js";

/** The name of what the site at `base` keeps: sites under one origin do not tidy each other's files away. */
const nameOf = (base) => `handbill ${encodeURIComponent(base.pathname)}`.slice(0, 200);

/** What the site at `base` has in OPFS. Throws where the browser has none, or refuses. */
export async function siteFolder(base) {
  const root = await navigator.storage.getDirectory();
  return root.getDirectoryHandle(nameOf(base), { create: true });
}

/** The best place that there is for the site at `base` (URL), or the one called `where`; null if there is none. */
export async function openPlace(base, where = "") {
  if (where !== "cache") {
    const place = await openOpfs(() => siteFolder(base));
    if (place || where) return place;
  }
  return openCache(`${nameOf(base)} files`, base);
}
