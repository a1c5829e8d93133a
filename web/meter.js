const REPORT_EVERY_MS = 200;
const RATE_WINDOW_MS = 5000;

/** Counts bytes and tells `report(progress message)` at most five times a second; the rate is that of five seconds. */
export class Meter {
  constructor(stage, total, report) {
    this.stage = stage;
    this.total = total;
    this.done = 0;
    this.report = report;
    this.marks = [];
    this.told = -Infinity;
    this.pause = 0;
  }

  /** `bytes` that were here already: they count as done, not towards the rate. */
  skip(bytes) {
    this.done += bytes;
    for (const mark of this.marks) mark.done += bytes;
    this.tell();
  }

  add(bytes) {
    this.done += bytes;
    const now = performance.now();
    if (now - this.told < REPORT_EVERY_MS && this.done < this.total && !this.pause) return;
    this.pause = 0;
    this.marks.push({ now, done: this.done });
    while (this.marks.length > 2 && now - this.marks[0].now > RATE_WINDOW_MS) this.marks.shift();
    this.tell();
  }

  /** Nothing comes, and is asked for again after `ms`. */
  wait(ms) {
    this.pause = Math.ceil(ms / 1000);
    this.marks = [];
    this.tell();
  }

  tell() {
    this.told = performance.now();
    const [first, last] = [this.marks[0], this.marks.at(-1)];
    const rate = last && last.now > first.now ? (1000 * (last.done - first.done)) / (last.now - first.now) : 0;
    const left = rate > 0 ? (this.total - this.done) / rate : null;
    this.report({
      kind: "progress", stage: this.stage, done: this.done, total: this.total, unit: "bytes",
      rate: Math.max(0, rate), seconds_left: left, pause: this.pause,
    });
  }
}
