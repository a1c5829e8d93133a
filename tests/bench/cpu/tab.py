"""A visit to the assembled page with the model already stored: python tests/bench/cpu/tab.py.

Writes results/tab.json: seconds from navigation to the first piece of an answer (a question is sent as soon as the page
is ready), memory of the tab beyond an empty one, and the bytes a first visit is sent. Needs dist/ (make site).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, sync_playwright

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "web"), str(ROOT / "tests")]

from report import RESULTS, rounded  # noqa: E402

import serve  # noqa: E402
import tabs  # noqa: E402

ROUNDS = 5
QUESTION = "What is the capital of France?"
MODEL = "smollm2-135m"

ASK_WHEN_READY = """
addEventListener("DOMContentLoaded", () => {
  const timer = setInterval(() => {
    if (!document.body.dataset.ready) return;
    clearInterval(timer);
    self.readySeconds = performance.now() / 1000;
    new BroadcastChannel(handbill.channel).onmessage = ({data}) => {
      if (JSON.parse(data).kind === "piece") self.firstSeconds ??= performance.now() / 1000;
    };
    const field = document.getElementById("message");
    field.value = QUESTION;
    field.dispatchEvent(new Event("input", {bubbles: true}));
    document.getElementById("send").click();
  }, 5);
});
""".replace("QUESTION", json.dumps(QUESTION))


class Counting(serve.Handler):
    """serve.py's handler; ``sent`` counts bytes of bodies, as they are sent (compressed where they are)."""

    sent = 0

    def _copy(self, file: Any, first: int, left: int) -> None:
        Counting.sent += left
        super()._copy(file, first, left)


def main() -> None:
    load = os.getloadavg()[0]
    server = serve.Server(tabs.DIST, 0)
    server.RequestHandlerClass = Counting
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=tabs.ARGUMENTS + tabs.NO_GPU,
        )
        empty = memory()
        visit(context, server.address)
        first_visit = Counting.sent
        visits = [visit(context, server.address, empty) for _ in range(ROUNDS)]
        version = context.browser.version if context.browser else ""
        context.close()
    server.shutdown()
    manifest = json.loads((tabs.DIST / "models" / MODEL / "manifest.json").read_text("utf-8"))
    result = {
        "machine": f"{os.cpu_count()}-core x86 machine without a GPU",
        "load_at_start": round(load, 2),
        "chromium": version,
        "runtime": visits[0]["runtime"],
        "ready_seconds": [each["ready"] for each in visits],
        "first_token_seconds": [each["first"] for each in visits],
        "tab_megabytes": statistics.median(each["megabytes"] for each in visits),
        "model_megabytes": sum(file["bytes"] for file in manifest["files"] if "weights" in file["name"]) / 1e6,
        "first_visit_sent_bytes": first_visit,
        "later_visits_sent_bytes": (Counting.sent - first_visit) // ROUNDS,
    }
    (RESULTS / "tab.json").write_text(json.dumps(rounded(result), indent=1) + "\n", "utf-8")
    print(json.dumps(rounded(result), indent=1))


def visit(context: BrowserContext, address: str, empty: float = 0.0) -> dict[str, Any]:
    """Open the page in a new tab, ask, wait for the answer's end, close the tab."""
    page = context.new_page()
    page.add_init_script(ASK_WHEN_READY)
    page.goto(f"{address}?model={MODEL}")
    page.wait_for_function("() => document.querySelector('.answer[data-ids]')", timeout=tabs.LOADED_MS)
    found = page.evaluate("() => ({ready: readySeconds, first: firstSeconds, runtime: document.body.dataset.ready})")
    found["megabytes"] = memory() - empty
    page.close()
    print(found, flush=True)
    return dict(found)


def memory() -> float:
    """Megabytes that belong to this process' renderers alone or in part (PSS): the open tabs."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"--type=renderer" in (folder / "cmdline").read_bytes() and descends(int(folder.name), os.getpid()):
                rollup = (folder / "smaps_rollup").read_text()
                total += int(rollup.split("\nPss:")[1].split()[0]) * 1024
        except (FileNotFoundError, ProcessLookupError):
            continue  # It ended between the listing and the look.
    return total / 1e6


def descends(child: int, ancestor: int) -> bool:
    while child > 1:
        if child == ancestor:
            return True
        child = int((Path("/proc") / str(child) / "stat").read_text().rpartition(")")[2].split()[1])
    return False


if __name__ == "__main__":
    main()
