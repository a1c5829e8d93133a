// Where the page does not start, because a file of it does not come or the browser is too old: it is loaded anew by
// itself once, and then the visitor is told. A script without imports and the first one, to be there when others are not.

(() => {
  const PAUSE_MS = 1000; // A host that was overloaded has a moment.
  const ANSWER_MS = 3000; // Past it the server is taken for gone.
  const TRIED = `handbill tried ${location.pathname}`;
  let failing = false;

  /** What the page's scripts and its tests share; start.js adds to it. */
  globalThis.handbill = {
    up: false, // page.py sets it: who tells the visitor from then on.
    ready: false, // The model is.
    failed,
    started,
    answers,
  };

  /** The page cannot start, or go on, because of `reason`, in the machine's own words. */
  async function failed(reason) {
    if (failing) return;
    failing = !handbill.ready;
    console.warn("The page could not start:", reason);
    if (failing && location.protocol !== "file:" && untried()) {
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      if (await answers(location.href)) return location.reload();
    } // Where the page is not to be had, this one, which at least can say what is wrong, had better stay.
    return tell(reason);
  }

  /** Whether all of `addresses` are to be had, from the server or from what is kept of the site. */
  async function answers(...addresses) {
    const signal = AbortSignal.timeout(ANSWER_MS);
    try {
      const asked = addresses.map((address) => fetch(address, { cache: "no-store", signal }));
      return (await Promise.all(asked)).every(({ ok }) => ok);
    } catch {
      return false;
    }
  }

  /** The page has started: page.py says so once the model is ready. */
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

  async function tell(reason) {
    if (handbill.up) {
      const channel = new BroadcastChannel(handbill.channel);
      const fault = handbill.ready ? "internal" : "start";
      channel.postMessage(JSON.stringify({ kind: "fault", fault, detail: reason }));
      channel.close();
      return;
    }
    if (document.readyState === "loading") await new Promise((resolve) => addEventListener("DOMContentLoaded", resolve));
    document.getElementById("alert-text").textContent = document.getElementById("cannot-start").textContent;
    const more = document.getElementById("alert-more");
    more.lastElementChild.textContent = reason;
    more.hidden = false;
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
