// A model's markdown as safe HTML. marked parses, DOMPurify keeps an allow-list; nothing in an answer can load or open
// anything: a link becomes its text with the address written out, a picture becomes its description.

import { marked } from "./markdown/marked.esm.js";
import DOMPurify from "./markdown/purify.es.mjs";
import { legible } from "./marks.js";

export { legible, tame } from "./marks.js";

const TAGS = [
  "a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "li", "ol",
  "p", "pre", "s", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
];

marked.use({ gfm: true, breaks: true });

/** `text` as a DocumentFragment of harmless elements; a picture without a description is called `picture`. */
export function fragment(text, picture) {
  const clean = DOMPurify.sanitize(marked.parse(text), {
    ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ["href", "alt", "start", "align"], ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  // Each block goes the way of its own first letter, a list with its marks and a table with its columns; within them
  // style.css lets each paragraph be read its own way. A trick with directions ends where its paragraph does.
  for (const block of clean.children) block.dir = "auto";
  for (const code of clean.querySelectorAll("pre")) code.dir = "ltr";
  for (const link of clean.querySelectorAll("a")) link.replaceWith(spelled(link));
  for (const image of clean.querySelectorAll("img")) image.replaceWith(`[${image.alt || picture}]`);
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

/** `text` as it is, in a paragraph. */
function plain(text) {
  const paragraph = document.createElement("p");
  paragraph.className = "plain";
  paragraph.dir = "auto";
  paragraph.textContent = text;
  return paragraph;
}

/**
 * Show what was `written` in `element`, touching only what changed, so that a selection further up survives while it
 * grows. What the parser cannot take (thousands of quotes in quotes fill its stack, after seconds) is shown as it was
 * written, and so is what is added to it.
 */
export function show(element, written, picture) {
  const text = legible(written);
  let fresh = [plain(text)];
  try {
    if (element.firstChild?.className !== "plain") fresh = [...fragment(text, picture).childNodes];
  } catch (error) {
    console.warn("An answer is shown as plain text:", error.message);
  }
  const old = [...element.childNodes];
  let same = 0;
  while (same < fresh.length && same < old.length && fresh[same].isEqualNode(old[same])) same += 1;
  for (const node of old.slice(same)) node.remove();
  element.append(...fresh.slice(same));
}
