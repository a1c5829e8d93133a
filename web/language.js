// The page's language: the one chosen in the settings, else the first of the browser's that words.json has, else
// English. Static text is filled in here, before any Python is up; what Python says comes from the same table (words.py).

import * as kept from "./kept.js";

/** The languages of words.json, each by its own name. */
export const LANGUAGES = { en: "English", de: "Deutsch" };

const PLACES = [["word", "textContent"], ["wordLabel", "ariaLabel"], ["wordPlaceholder", "placeholder"]];

/** The language that was chosen; "" for the browser's. */
export function chosen() {
  const language = kept.get("language");
  return language in LANGUAGES ? language : "";
}

/** The language to speak now. */
export function spoken() {
  const offered = navigator.languages.map((tag) => tag.toLowerCase().split("-")[0]);
  const given = document.documentElement.dataset.language; // A kiosk's own.
  return chosen() || given || (offered.find((language) => language in LANGUAGES) ?? "en");
}

/** Speak `language` from now on; "" for the browser's. */
export function choose(language) {
  kept.set("language", language);
  return fill();
}

/** Write the words of every element that names its row of the table: data-word, data-word-label, data-word-placeholder. */
export async function fill() {
  const language = spoken();
  if (document.documentElement.lang === language) return;
  const table = await (await fetch(new URL("words.json", import.meta.url))).json();
  document.documentElement.lang = language;
  for (const [mark, property] of PLACES) {
    const attribute = mark.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    for (const element of document.querySelectorAll(`[data-${attribute}]`)) {
      element[property] = table[element.dataset[mark]][language];
    }
  }
}
