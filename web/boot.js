// Where the page does not start, because a file of it does not come or the browser is too old: it is loaded anew by
// itself once, and then the visitor is told. A script without imports and the first one, to be there when others are not.

(() => {
  const PAUSE_MS = 1000; // A host that was overloaded has a moment.
  const TRIED = `handbill tried ${location.pathname}`;
  let failing = false;

  /** What the page's scripts and its tests share; start.js adds to it. */
  globalThis.handbill = {
    up: false, // page.py sets it: who tells the visitor from then on.
    ready: false, // The model is.
    failed,
    started,
  };

  /** The page cannot start, or go on, because of `reason`, in the machine's own words. */
  async function failed(reason) {
    if (failing) return;
    failing = !handbill.ready;
    console.warn("The page could not start:", reason);
    if (failing && untried() && (await hasPage())) location.reload();
    else tell(reason);
  }

  /** The page has started. */
  function started() {
    handbill.ready = true;
    try {
      sessionStorage.removeItem(TRIED);
    } catch {
      // This browser keeps nothing, and untried() said so.
    }
  }

  /** Whether this is the first time in this tab since the page last started. */
  function untried() {
    try {
      const first = !sessionStorage.getItem(TRIED);
      sessionStorage.setItem(TRIED, "yes");
      return first;
    } catch {
      return false; // Without a memory it might never end.
    }
  }

  /** After a pause, whether the page is to be had: else this one, which at least can say what is wrong, had better stay. */
  async function hasPage() {
    if (location.protocol === "file:") return false;
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    return fetch(location.href, { cache: "no-store" }).then(({ ok }) => ok, () => false);
  }

  async function tell(reason) {
    if (handbill.up) {
      const channel = new BroadcastChannel(handbill.channel);
      const fault = handbill.ready ? "internal" : "start";
      channel.postMessage(JSON.stringify({ kind: "fault", fault, detail: reason }));
      channel.close();
      return;
    }
    if (document.readyState === "loading") await new Promise((resolve) => addEventListener("DOMContentLoaded", resolve));
    const [text, details] = document.getElementById("alert-told").children;
    text.textContent = document.getElementById("cannot-start").textContent;
    details.lastElementChild.textContent = reason;
    details.hidden = false;
    document.getElementById("alert").hidden = false;
    document.getElementById("status-text").textContent = "";
    handbill.watchdog?.revive();
  }

  // Scripts and style sheets that do not come say so to whoever listens on the way down to them, and to nobody else.
  addEventListener("error", ({ target, message }) => {
    const file = target === window ? null : (target.src ?? target.href);
    hear(file ? `${file} did not come.` : message);
  }, true);
  addEventListener("unhandledrejection", ({ reason }) => hear(reason?.message));

  /** Once page.py is up, an error that nobody has caught need not concern the start, unless it is about a file. */
  function hear(reason) {
    if (reason && !handbill.ready && (!handbill.up || /\b(fetch|import)/i.test(reason))) failed(reason);
  }

  addEventListener("click", ({ target }) => {
    if (target.id === "retry") location.reload();
  });
})();
