// What this site keeps in this browser: the models in the place, the releases of the site, the openings. Says how large
// each is, and removes what nobody uses.

import { FOLDER as OPENINGS } from "./openings.js";
import { siteFolder } from "./place.js";
import { manifestsIn, releaseBytes, releases, removeReleases } from "./releases.js";

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const shasOf = (manifest) => manifest.files.map(({ sha256 }) => sha256);

export class Inventory {
  #base;
  #place;
  #holds;
  #manifests;

  /** Of the site at `base` (URL) with its files in `place`; `manifests` are its models', null for one not to be had. */
  constructor(base, place, holds, manifests) {
    this.#base = base;
    this.#place = place;
    this.#holds = holds;
    this.#manifests = manifests;
  }

  /** Remove what no model of any release names, unless a tab holds it. A manifest that cannot be had spares everything. */
  async tidy() {
    if (this.#manifests.includes(null)) return;
    const manifests = [...this.#manifests];
    for (const release of await releases(this.#base)) manifests.push(...(await manifestsIn(release, this.#base)));
    const named = new Set(manifests.flatMap(shasOf));
    for (const sha256 of (await this.#place.list()).keys()) {
      if (!named.has(sha256)) await this.#holds.unlessHeld(sha256, () => this.#place.remove(sha256));
    }
  }

  /** Whether `entries` will fit, less what is there of them already; true where the browser does not say. */
  async room(entries) {
    const { quota, usage = 0 } = (await navigator.storage?.estimate?.().catch(() => null)) ?? {};
    if (quota === undefined) return true;
    const here = await this.#place.list();
    return sum(entries.map(({ sha256, bytes }) => Math.max(0, bytes - (here.get(sha256) ?? 0)))) <= quota - usage;
  }

  /**
   * {items, used, quota, persistent}: bytes used and allowed in this origin, and whether the browser has promised to keep
   * them. An item is {item: "model <slug>", "site" or "openings", title, bytes, state}; state: "here" and "elsewhere" say
   * which tabs use it, "coming" that it is being downloaded, "" that nobody does.
   */
  async survey() {
    const items = [...(await this.#models()), ...(await this.#others())];
    const { quota = null, usage = null } = (await navigator.storage?.estimate?.().catch(() => null)) ?? {};
    const persistent = (await navigator.storage?.persisted?.().catch(() => false)) ?? false;
    return { items, used: usage, quota, persistent };
  }

  /** Remove `item` of a survey; "" or the state that forbids it, or "reading" while a file of it is being read. */
  async discard(item) {
    if (item === "site") await removeReleases(this.#base);
    else if (item === "openings") await this.#removeOpenings();
    else return this.#discardModel(item);
    return "";
  }

  async #models() {
    const here = await this.#place.list();
    const counted = new Set(); // What two models share is the first one's.
    const items = [];
    for (const manifest of this.#manifests.filter(Boolean)) {
      const shas = [...new Set(shasOf(manifest))].filter((sha256) => here.has(sha256));
      const bytes = sum(shas.filter((sha256) => !counted.has(sha256)).map((sha256) => here.get(sha256)));
      for (const sha256 of shas) counted.add(sha256);
      if (!bytes) continue;
      const state = await this.#state(manifest, shas);
      items.push({ item: `model ${manifest.slug}`, title: manifest.title, bytes, state });
    }
    return items;
  }

  async #state(manifest, shas) {
    if ((await this.#holds.elsewhere(shas)).length) return "elsewhere";
    const held = manifest.files.filter(({ sha256 }) => this.#holds.holds(sha256));
    const whole = await Promise.all(held.map((entry) => this.#place.has(entry)));
    if (whole.includes(false)) return "coming";
    return held.length ? "here" : "";
  }

  async #discardModel(item) {
    const { state } = (await this.#models()).find((one) => one.item === item) ?? { state: "" };
    if (state === "elsewhere" || state === "coming") return state;
    const here = await this.#place.list();
    const manifests = this.#manifests.filter(Boolean);
    const shas = new Set(shasOf(manifests.find(({ slug }) => `model ${slug}` === item) ?? { files: [] }));
    const others = manifests.filter(({ slug }) => `model ${slug}` !== item).map(shasOf);
    const keptToo = others.filter((names) => names.some((sha256) => here.has(sha256) && !shas.has(sha256)));
    for (const sha256 of keptToo.flat()) shas.delete(sha256); // Some of the files are of another model as well.
    let refused = "";
    for (const sha256 of shas) refused = (await this.#discardFile(sha256)) || refused;
    return refused;
  }

  /** Remove a file, which this tab may hold; "" or why not: "elsewhere" if another tab holds it, "reading" if it is open. */
  async #discardFile(sha256) {
    const held = this.#holds.holds(sha256);
    await this.#holds.release([sha256]);
    try {
      const removed = await this.#holds.unlessHeld(sha256, () => this.#place.remove(sha256));
      return removed ? "" : "elsewhere"; // Somebody has opened it this very moment.
    } catch (error) {
      if (error.name !== "NoModificationAllowedError") throw error;
      if (held) await this.#holds.hold([sha256]);
      return "reading";
    }
  }

  async #others() {
    const sizes = { site: await releaseBytes(this.#base), openings: await this.#openingBytes() };
    const items = Object.entries(sizes).map(([item, bytes]) => ({ item, title: "", bytes, state: "" }));
    return items.filter(({ bytes }) => bytes);
  }

  async #openingBytes() {
    try {
      return await bytesIn(await (await siteFolder(this.#base)).getDirectoryHandle(OPENINGS));
    } catch {
      return 0; // There are none, or no OPFS.
    }
  }

  async #removeOpenings() {
    await (await siteFolder(this.#base)).removeEntry(OPENINGS, { recursive: true });
  }
}

async function bytesIn(folder) {
  let bytes = 0;
  for await (const entry of folder.values()) {
    bytes += entry.kind === "file" ? (await entry.getFile()).size : await bytesIn(entry);
  }
  return bytes;
}
