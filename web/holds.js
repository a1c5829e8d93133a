// Which kept files are in use, over all tabs: each tab holds a Web Lock, shared, on each file of its model, and what
// somebody holds is not removed. The browser lets go of the locks of a tab that is closed or killed.

export class Holds {
  #base;
  #held = new Map(); // sha256 → what lets go of it, and promises that it is gone

  /** Of the site at `base` (URL). */
  constructor(base) {
    this.#base = base;
  }

  #lock(sha256) {
    return `handbill ${this.#base.pathname} ${sha256}`;
  }

  /** Hold the files `shas`. */
  async hold(shas) {
    await Promise.all(shas.filter((sha256) => !this.#held.has(sha256)).map((sha256) => this.#hold(sha256)));
  }

  #hold(sha256) {
    return new Promise((held, refused) => {
      const over = navigator.locks.request(this.#lock(sha256), { mode: "shared" }, () => new Promise((letGo) => {
        this.#held.set(sha256, () => {
          letGo();
          return over;
        });
        held();
      }));
      over.catch(refused);
    });
  }

  /** Let go of `shas`. */
  async release(shas) {
    for (const sha256 of shas) {
      const letGo = this.#held.get(sha256);
      this.#held.delete(sha256);
      await letGo?.();
    }
  }

  holds(sha256) {
    return this.#held.has(sha256);
  }

  /** Those of `shas` that other tabs hold. */
  async elsewhere(shas) {
    const { held } = await navigator.locks.query();
    const count = (sha256) => held.filter(({ name }) => name === this.#lock(sha256)).length;
    return shas.filter((sha256) => count(sha256) > (this.#held.has(sha256) ? 1 : 0));
  }

  /** Call `remove()` unless a tab holds `sha256`; whether it was called. */
  async unlessHeld(sha256, remove) {
    return navigator.locks.request(this.#lock(sha256), { ifAvailable: true }, async (lock) => {
      if (lock) await remove();
      return lock !== null;
    });
  }

  /** Call `work()` while no other tab downloads or removes: a second one waits, and then finds the files whole. */
  async alone(work) {
    return navigator.locks.request(`handbill ${this.#base.pathname}`, work);
  }
}
