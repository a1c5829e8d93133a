// A model's markdown as safe HTML. marked parses, DOMPurify keeps an allow-list; nothing in an answer can load or open
// anything: a link becomes its text with the address written out, a picture becomes its description.

import { marked } from "./markdown/marked.esm.js";
import DOMPurify from "./markdown/purify.es.mjs";

const TAGS = [
  "a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "li", "ol",
  "p", "pre", "s", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
];

const BLOCKS = "p, li, blockquote, td, th, h1, h2, h3, h4, h5, h6";

marked.use({ gfm: true, breaks: true });

/** `text` as a DocumentFragment of harmless elements. */
export function fragment(text) {
  const clean = DOMPurify.sanitize(marked.parse(text), {
    ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ["href", "alt", "start", "align"], ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  // Each paragraph goes the way of its own first letter; a trick with directions ends where its paragraph does.
  for (const block of clean.querySelectorAll(BLOCKS)) block.dir = "auto";
  for (const link of clean.querySelectorAll("a")) link.replaceWith(spelled(link));
  for (const picture of clean.querySelectorAll("img")) picture.replaceWith(`[${picture.alt || "picture"}]`);
  return clean;
}

function spelled(link) {
  const span = document.createElement("span");
  span.className = "link";
  span.append(...link.childNodes);
  const address = link.getAttribute("href") ?? "";
  if (address && address !== span.textContent) span.append(` (${address})`);
  return span;
}

/** Show `text` in `element`, touching only what changed, so that a selection further up survives while it grows. */
export function show(element, text) {
  const fresh = [...fragment(text).childNodes];
  const old = [...element.childNodes];
  let same = 0;
  while (same < fresh.length && same < old.length && fresh[same].isEqualNode(old[same])) same += 1;
  for (const node of old.slice(same)) node.remove();
  element.append(...fresh.slice(same));
}
