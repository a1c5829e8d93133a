// Which of the site's models this device takes, as a `chosen` message: site and manifests read, facts gathered, chosen.

import { fetchJson } from "./download.js";
import { asFault } from "./fault.js";
import { sound } from "./manifest.js";
import { choose, needed } from "./sessions/choose.js";
import { gather } from "./sessions/facts.js";

/** The address of a model's manifest on the site at `base`. */
export const manifestUrl = (base, slug) => new URL(`models/${encodeURIComponent(slug)}/manifest.json`, base).href;

/**
 * {chosen, fault, manifest, entries, manifests} for `wish` ({model, runtime}, see choose.js) on the site at `base`: the
 * `chosen` message, and, unless the model is refused, its manifest and the entries of it to have. `manifests` are those of
 * all models, null for one that cannot be had; `fault` is why, if that is the model asked for (none asked for: the site's
 * first), whose refusal then is the fault's kind. Throws it where there is no other to choose. `read(url)` gives the JSON
 * there.
 */
export async function decide(site, wish, base, read = fetchJson) {
  const slugs = site.models.map(({ slug }) => slug);
  const soundly = async (slug) => sound(await read(manifestUrl(base, slug)), slug);
  const asked = slugs.includes(wish.model) ? wish.model : slugs[0];
  let fault = null; // Another model instead, which nobody has asked for, might be a gigabyte more.
  const wanted = slugs.map((slug) => soundly(slug).catch((error) => {
    if (slug === asked) fault = asFault(error);
    return null;
  }));
  const manifests = await Promise.all(wanted);
  const choice = choose(await gather(site), manifests.filter(Boolean), fault ? { ...wish, model: asked } : wish);
  if (fault && !choice.offers.length) throw fault;
  if (fault) choice.refusal = fault.fault;
  const [first] = choice.sessions;
  const chosen = { kind: "chosen", ...choice, page: site.visit?.[first?.build || first?.name] ?? 0 };
  const manifest = choice.refusal ? null : manifests.find((one) => one?.slug === choice.slug);
  return { chosen, fault, manifest, entries: manifest ? needed(manifest, first) : [], manifests };
}
