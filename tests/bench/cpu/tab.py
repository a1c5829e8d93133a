"""A visit to the assembled page with the model already stored: python tests/bench/cpu/tab.py [--model gemma-3-270m].

Writes results/tab.json (of another model than the default tab-NAME.json): seconds from navigation to the first piece of
an answer (a question is sent as soon as the page is ready), memory of the tab beyond an empty one, and the bytes a
first visit is sent. Needs dist/ (make site) with the model in it.

Memory is the sum of PSS (a page that several processes map counts once in all) over every process of the browser, at
the answer's end and once more when it has rested, less the same sum while the tab was empty. Each visit has a browser
of its own, or what it left uncollected would count in the next one. Other Chromiums would share the binary's pages, so
there must be none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, sync_playwright

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "web"), str(ROOT / "tests")]

from report import DEFAULT, RESULTS, named, rounded  # noqa: E402

import serve  # noqa: E402
import tabs  # noqa: E402

ROUNDS = 5
REST_SECONDS = 10
QUESTION = "What is the capital of France?"

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT, help="a model in dist/")
    model = parser.parse_args().model
    if chromiums():
        sys.exit("Another Chromium is running and would share memory with this one: close it, then measure again.")
    load = os.getloadavg()[0]
    # Else the driver's inspector keeps every answer that passes through the service worker, which nobody else would.
    os.environ["PLAYWRIGHT_DISABLE_SERVICE_WORKER_NETWORK"] = "1"
    server = serve.Server(tabs.DIST, 0)
    server.RequestHandlerClass = Counting
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:

        def visited() -> dict[str, Any]:
            context = playwright.chromium.launch_persistent_context(
                profile,
                executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
                args=tabs.ARGUMENTS + tabs.NO_GPU,
            )
            found = visit(context, server.address, model)
            context.close()
            return found

        visited()
        first_visit = Counting.sent
        visits = [visited() for _ in range(ROUNDS)]
    server.shutdown()
    manifest = json.loads((tabs.DIST / "models" / model / "manifest.json").read_text("utf-8"))
    result = {
        "machine": f"{os.cpu_count()}-core x86 machine without a GPU",
        "load_at_start": round(load, 2),
        "chromium": visits[0]["chromium"],
        "runtime": visits[0]["runtime"],
        "ready_seconds": [each["ready"] for each in visits],
        "first_token_seconds": [each["first"] for each in visits],
        "tab_megabytes": statistics.median(each["megabytes"] for each in visits),
        "rested_megabytes": statistics.median(each["rested"] for each in visits),
        "model_megabytes": sum(file["bytes"] for file in manifest["files"] if "weights" in file["name"]) / 1e6,
        "first_visit_sent_bytes": first_visit,
        "later_visits_sent_bytes": (Counting.sent - first_visit) // ROUNDS,
    }
    (RESULTS / f"{named('tab', model)}.json").write_text(json.dumps(rounded(result), indent=1) + "\n", "utf-8")
    print(json.dumps(rounded(result), indent=1))


def visit(context: BrowserContext, address: str, model: str) -> dict[str, Any]:
    """Open the page in a new tab, ask, wait for the answer's end and let the tab rest."""
    page = context.new_page()
    page.add_init_script(ASK_WHEN_READY)
    time.sleep(REST_SECONDS / 5)  # The browser is still starting.
    empty = memory()
    page.goto(f"{address}?model={model}")
    page.wait_for_function("() => document.querySelector('.answer[data-ids]')", timeout=tabs.LOADED_MS)
    megabytes = memory() - empty
    found = page.evaluate("() => ({ready: readySeconds, first: firstSeconds, runtime: document.body.dataset.ready})")
    time.sleep(REST_SECONDS)
    found |= {"megabytes": megabytes, "rested": memory() - empty}
    found["chromium"] = context.browser.version if context.browser else ""
    print(found, flush=True)
    return dict(found)


def memory(*kinds: bytes, fields: Sequence[str] = ("Pss",)) -> float:
    """Megabytes of the browser that this process has started: of all its processes, or of those of ``kinds``.

    ``fields`` are those of /proc/PID/smaps_rollup to add up: Pss is all that a process has, with its share of what
    others have too.
    """
    total = 0
    for folder in chromiums():
        try:
            command = (folder / "cmdline").read_bytes()
            if (not kinds or any(kind in command for kind in kinds)) and descends(int(folder.name), os.getpid()):
                rollup = (folder / "smaps_rollup").read_text()
                total += sum(int(rollup.split(f"\n{field}:")[1].split()[0]) * 1024 for field in fields)
        except (FileNotFoundError, ProcessLookupError, IndexError):
            continue  # It ended between the listing and the look.
    return total / 1e6


def chromiums() -> list[Path]:
    """The folders in /proc of everybody's Chromium processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"chromium" in (folder / "cmdline").read_bytes().partition(b"\0")[0]:
                found.append(folder)
    return found


def descends(child: int, ancestor: int) -> bool:
    while child > 1:
        if child == ancestor:
            return True
        child = int((Path("/proc") / str(child) / "stat").read_text().rpartition(")")[2].split()[1])
    return False


if __name__ == "__main__":
    main()
