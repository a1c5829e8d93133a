"""Sessions that come and go, and the memory they leave taken: python tests/bench/disposal.py [cpu] [wasm] [webgpu].

Loads and disposals of a tiny model on each runtime, in a worker as on the page; WebGPU is SwiftShader's. Memory is
that of the page's renderer and of Chromium's GPU process after garbage collections, less files: other browsers share
the program's own pages, and would be seen. A point of the curve comes every ten loads, and one alone is off by
megabytes, so growth is between medians of three, fifty loads apart: of the points after the first forty loads, in which
heaps grow to the size that they keep, and of the last ones. Writes results/disposal.json, the two processes apart, and
exits with 1 if a runtime's memory grows by more than 5 %. Needs dist/ (make site).
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "web"), str(ROOT / "tests")]

import renderers  # noqa: E402

import gpu_page  # noqa: E402
import tabs  # noqa: E402
import tiny_exports  # noqa: E402

RESULT = ROOT / "tests" / "bench" / "results" / "disposal.json"
RUNTIMES = ("cpu", "wasm", "webgpu")
MARK = 10
WARM_UP = 4
"""Points of the curve that are not looked at, but for the last."""

APART = 5
"""Points between the middle ones of the first three that are looked at and of the last three: fifty loads."""

ALLOWED = 0.05
WORK = """(job) => new Promise((resolve, reject) => {
  self.worker ??= new Worker("/disposal.js", { type: "module" });
  worker.onmessage = ({ data }) => (data ? reject(new Error(data)) : resolve());
  worker.onerror = ({ message }) => reject(new Error(message));
  worker.postMessage(job);
})"""


def curve(page: Page, runtime: str) -> list[dict[str, float]]:
    """Megabytes of the renderer and of the GPU process after each MARK loads."""
    found: list[dict[str, float]] = []
    started = time.monotonic()
    marks = WARM_UP + 2 + APART
    for mark in range(1, marks + 1):
        page.evaluate(WORK, {"runtime": runtime, "times": MARK})
        found.append(look(page))
        left = (time.monotonic() - started) / mark * (marks - mark)
        print(f"{runtime}: {mark * MARK} of {marks * MARK}, {found[-1]}, {left:.0f} s left", flush=True)
    return found


def look(page: Page) -> dict[str, float]:
    """Megabytes that the two take now; the worker has collected its garbage."""
    page.wait_for_timeout(1000)
    return {
        "renderer": round(renderers.own_megabytes(), 2),
        "gpu": round(renderers.own_megabytes(b"--type=gpu-process"), 2),
    }


def growth(points: list[dict[str, float]]) -> float:
    """How much more the two take together after fifty loads, as a share."""
    together = [sum(point.values()) for point in points[WARM_UP - 1 :]]
    return round(statistics.median(together[APART:]) / statistics.median(together[:3]) - 1, 4)


def main() -> int:
    """The command ``python tests/bench/disposal.py [cpu] [wasm] [webgpu]``; what is not measured stays as it was."""
    result = json.loads(RESULT.read_text("utf-8")) if RESULT.is_file() else {}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        home = gpu_page.site(Path(folder) / "site", tabs.DIST, {"tiny": tiny_exports.exported("llama")})
        shutil.copy2(Path(__file__).with_suffix(".js"), home / "disposal.js")
        for runtime in sys.argv[1:] or RUNTIMES:
            browser = tabs.launch(playwright, "--js-flags=--expose-gc", gpu=True)
            with tabs.serving(home) as address:
                page = browser.new_page()
                page.set_default_timeout(3_600_000)
                page.goto(address)
                points = curve(page, runtime)
            result[runtime] = {"chromium": browser.version, "megabytes": points, "growth": growth(points)}
            RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            browser.close()
    print({runtime: found["growth"] for runtime, found in result.items()})
    return 0 if all(found["growth"] <= ALLOWED for found in result.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
