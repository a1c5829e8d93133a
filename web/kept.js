// The visitor's choices, kept in localStorage under names of this page's own; several may share an origin. On a kiosk
// they are forgotten with the visitor.

const kiosk = document.documentElement.classList.contains("kiosk");
const chosen = new Map();

/** What is kept under `name`, "" where there is nothing. */
export function get(name) {
  try {
    return chosen.get(name) ?? (kiosk ? "" : localStorage.getItem(key(name)) ?? "");
  } catch {
    return ""; // This browser keeps nothing (blocked cookies).
  }
}

/** Keep `text` under `name`; "" removes it. */
export function set(name, text) {
  chosen.set(name, text);
  if (kiosk) return;
  try {
    if (text) localStorage.setItem(key(name), text);
    else localStorage.removeItem(key(name));
  } catch (error) {
    console.warn(`"${name}" is kept for this visit only:`, error.message);
  }
}

/** Forget the choices of this visit. */
export function clear() {
  chosen.clear();
}

function key(name) {
  return `handbill ${name} ${location.pathname}`;
}
