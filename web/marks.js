// Letters under hundreds of accents: no language has them, and a browser takes a minute to lay out a hundred thousand.

/** Most marks on a letter: what Unicode's stream-safe text has (UAX #15), thirty, is more than any language needs. */
const SURPLUS = /(\p{M}{30})\p{M}+/gu;

/** `text` without the marks past the thirtieth on a letter. */
export const legible = (text) => text.replace(SURPLUS, "$1");

/** Put legible text in the place of what is being typed or pasted (`beforeinput`), before the browser lays it out. */
export function tame(event) {
  const text = legible(event.data ?? "");
  if (text === (event.data ?? "")) return;
  event.preventDefault();
  document.execCommand("insertText", false, text); // As if typed: within the field's bounds, and Undo takes it back.
}
