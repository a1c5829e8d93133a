// The visitor's choices, kept in localStorage under names of this site's own; several sites may share an origin.

/** What is kept under `name`, "" where there is nothing, or where the browser keeps nothing (blocked cookies). */
export function get(name) {
  try {
    return localStorage.getItem(key(name)) ?? "";
  } catch {
    return "";
  }
}

/** Keep `text` under `name`; "" removes it. Where the browser refuses, the choice is forgotten with the tab. */
export function set(name, text) {
  try {
    if (text) localStorage.setItem(key(name), text);
    else localStorage.removeItem(key(name));
  } catch (error) {
    console.warn(`"${name}" is not kept beyond this visit:`, error.message);
  }
}

function key(name) {
  return `handbill ${name} ${location.pathname}`;
}
