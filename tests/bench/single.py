"""SmolLM2's page as one file, opened as by a double-click with the network off: python tests/bench/single.py.

Writes results/single.json: seconds from navigation to the first piece of an answer and to its end (the question is sent
as soon as the page is ready), memory of the tab then and at its peak, each beside what is allowed. Exits with 1 if the
page is too slow or too large. Needs dist/ (make site).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("", "web", "build", "tests", "tests/bench")]

from renderers import own_megabytes  # noqa: E402

import single  # noqa: E402
import tabs  # noqa: E402

RESULTS = ROOT / "tests" / "bench" / "results"
MODEL = "smollm2-135m"
QUESTION = "What is the capital of France?"
ROUNDS = 5
ALLOWED_SECONDS = 15
ALLOWED_SIZES = 3
"""Most memory, in sizes of the file."""

ASK_WHEN_READY = """
localStorage.setItem("handbill settings " + location.pathname, JSON.stringify({temperature: 0}));
addEventListener("DOMContentLoaded", () => {
    const timer = setInterval(() => {
        if (!document.body?.dataset.ready) return;
        clearInterval(timer);
        self.readySeconds = performance.now() / 1000;
        new BroadcastChannel(handbill.channel).onmessage = ({data}) => {
            const { kind } = JSON.parse(data);
            if (kind === "piece") self.firstSeconds ??= performance.now() / 1000;
            if (kind === "done") self.doneSeconds = performance.now() / 1000;
        };
        document.getElementById("message").value = QUESTION;
        document.getElementById("composer").requestSubmit();
    }, 5);
});
""".replace("QUESTION", json.dumps(QUESTION))


@contextmanager
def watched() -> Iterator[list[float]]:
    """Megabytes of the open tabs, looked at twenty times a second for the length of a ``with`` block."""
    seen: list[float] = [own_megabytes()]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            seen.append(own_megabytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def visit(browser: Browser, file: Path) -> dict[str, Any]:
    """One double-click in a new profile, one question and its answer."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.add_init_script(ASK_WHEN_READY)
    with watched() as seen:
        page.goto(file.as_uri())
        page.wait_for_function("() => document.querySelector('.answer[data-ids]')", timeout=tabs.LOADED_MS)
    found: dict[str, Any] = page.evaluate(
        """() => ({ready_seconds: readySeconds, first_piece_seconds: firstSeconds, answer_seconds: doneSeconds,
            text: document.querySelector(".answer .body").textContent})"""
    )
    assert "Paris" in found.pop("text")
    found |= {"megabytes": seen[-1], "peak_megabytes": max(seen)}
    context.close()
    print(found, flush=True)
    return found


def main() -> int:
    """The command ``python tests/bench/single.py``."""
    load = os.getloadavg()[0]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "handbill.html"
        single.write(tabs.DIST, MODEL, file)
        size = file.stat().st_size / 1e6
        browser = tabs.launch(playwright)
        visits = [visit(browser, file) for _ in range(ROUNDS)]
        version = browser.version
        browser.close()
    middle = {name: round(statistics.median(each[name] for each in visits), 2) for name in visits[0]}
    sizes = middle["peak_megabytes"] / size
    result = {
        "machine": f"{os.cpu_count()}-core x86 machine without a GPU",
        "load_at_start": round(load, 2),
        "chromium": version,
        "rounds": ROUNDS,
        "file_megabytes": round(size, 2),
        **middle,
        "peak_in_sizes_of_the_file": round(sizes, 2),
        "allowed": {"first_piece_seconds": ALLOWED_SECONDS, "peak_in_sizes_of_the_file": ALLOWED_SIZES},
    }
    (RESULTS / "single.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return 0 if middle["first_piece_seconds"] <= ALLOWED_SECONDS and sizes <= ALLOWED_SIZES else 1


if __name__ == "__main__":
    raise SystemExit(main())
