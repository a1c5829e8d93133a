"""Conversations by the hundred in one tab, and the memory it takes: python tests/bench/soak.py (make soak).

500 with a tiny random model and 30 with SmolLM2, each of two short questions, on the page dressed as a kiosk, which
forgets its visitor in between and loads itself anew, into another process. The time until then is skipped, and so the
service worker is stopped by hand: Chromium does that after half a minute without a request, unless a driver is there.
Memory is looked at after garbage collections, and what counts is the least of each third after the warm-up: between
collections of its own a browser's memory is a sawtooth. Writes results/soak.json and soak.svg, and exits with 1 if it
grows by more than 2 %. Needs dist/ (make site). ``--tiny 60 --real 0`` is a short one, which writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("", "web", "build", "tests", "tests/bench")]

from renderers import own_megabytes  # noqa: E402

import kiosk_tab  # noqa: E402
import page_models  # noqa: E402
import tabs  # noqa: E402

RESULTS = ROOT / "tests" / "bench" / "results"
ALLOWED = 0.02
WARM_UP = 0.3
"""Share of the conversations after which everything that is allocated once has been."""
CONVERSATION = """async (questions) => {
    self.soaking ??= new BroadcastChannel(handbill.channel);
    const field = document.getElementById("message");
    for (const question of questions) {
        const done = new Promise((resolve, reject) => {
            soaking.onmessage = ({data}) => {
                const message = JSON.parse(data);
                if (message.kind === "done") resolve();
                if (message.kind === "fault") reject(new Error(message.detail));
            };
        });
        field.value = question;
        document.getElementById("composer").requestSubmit();
        await done;
        // The page hears the same message in its own turn.
        while (document.querySelector(".answer.busy")) await new Promise((resolve) => setTimeout(resolve, 5));
    }
    document.getElementById("new-chat").click();
}"""

LIMITS = {"answer_tokens": 12, "system": "Answer in one sentence.", "questions": ["What is the capital of France?"]}
"""Of the kiosk."""


class Heap:
    """JavaScript's heap of the page, or of the worker ``target``: collected on demand, so that what is left is kept."""

    def __init__(self, page: Page, target: str = "") -> None:
        self._page = page
        self._answers: dict[int, dict[str, Any]] = {}
        self._session: CDPSession = page.context.new_cdp_session(page)
        self._worker = ""
        if target:  # Playwright opens no session on a worker: its messages travel inside those of the browser's.
            assert page.context.browser
            self._session = page.context.browser.new_browser_cdp_session()
            self._session.on("Target.receivedMessageFromTarget", self._hear)
            self._worker = self._session.send("Target.attachToTarget", {"targetId": target, "flatten": False})[
                "sessionId"
            ]
        self._send("HeapProfiler.enable")

    def megabytes(self) -> float:
        """Its size after a garbage collection."""
        self._send("HeapProfiler.collectGarbage")
        return float(self._send("Runtime.getHeapUsage")["usedSize"]) / 1e6

    def close(self) -> None:
        """Let the inspector go, which takes memory where it looks."""
        if self._worker:
            self._session.send("Target.detachFromTarget", {"sessionId": self._worker})
        self._session.detach()

    def _hear(self, event: dict[str, Any]) -> None:
        message = json.loads(event["message"])
        if event["sessionId"] == self._worker and "id" in message:
            self._answers[message["id"]] = message

    def _send(self, method: str) -> dict[str, Any]:
        if not self._worker:
            return dict(self._session.send(method))
        number = len(self._answers)
        message = json.dumps({"id": number, "method": method})
        self._session.send("Target.sendMessageToTarget", {"sessionId": self._worker, "message": message})
        while number not in self._answers:
            self._page.wait_for_timeout(10)
        return dict(self._answers[number]["result"])


def heaps(page: Page) -> dict[str, Heap]:
    """The heaps of the tab's page, of its engine and of the site's service worker."""
    assert page.context.browser
    listing = page.context.browser.new_browser_cdp_session()
    kinds = [{"type": "worker"}, {"type": "service_worker"}]
    targets = listing.send("Target.getTargets", {"filter": kinds})["targetInfos"]
    listing.detach()
    (service,) = [target["targetId"] for target in targets if target["type"] == "service_worker"]
    # PyScript starts the engine from a blob, whose address says nothing; the others are files of ours.
    (engine,) = [target["targetId"] for target in targets if not target["url"].split("?")[0].endswith(".js")]
    return {"page": Heap(page), "engine": Heap(page, engine), "service": Heap(page, service)}


def soak(browser: Browser, site: Path, home: Path, query: str, count: int, marks: int) -> list[dict[str, float]]:
    """``count`` visitors of ``site`` as the kiosk ``home``; megabytes of the tab and its heaps at ``marks`` places."""
    with tabs.serving(kiosk_tab.dressed(site, home, kiosk_tab.wishes(**LIMITS))) as address:
        page = browser.new_page()
        page.add_init_script(kiosk_tab.SKIP)
        tab = tabs.Tab(page, address)
        tab.open(query)
        curve = [look(page, 0)]
        started = time.monotonic()
        for number in range(1, count + 1):
            page.click("#begin")
            page.evaluate(CONVERSATION, [f"Count to {number}, please.", "And once more?"])
            kiosk_tab.mark(tab)
            rest(page)
            kiosk_tab.pass_time(tab, 600)
            kiosk_tab.wait_for_another(tab)
            tab.ready()
            if number % max(1, count // marks) == 0:
                curve.append(look(page, number))
                left = (time.monotonic() - started) / number * (count - number)
                print(f"{query or 'tiny'}: {number} of {count}, {curve[-1]}, {left:.0f} s left", flush=True)
        assert tab.errors == [], tab.errors
        page.close()
    return curve


def rest(page: Page) -> None:
    """Stop the service worker, as happens while nobody asks for anything; the next request starts it again."""
    session = page.context.new_cdp_session(page)
    session.send("ServiceWorker.enable")
    session.send("ServiceWorker.stopAllWorkers")
    session.detach()


def look(page: Page, number: int) -> dict[str, float]:
    """What the tab takes now, after ``number`` conversations and a garbage collection."""
    found = heaps(page)
    sizes = {name: round(heap.megabytes(), 3) for name, heap in found.items()}
    for heap in found.values():
        heap.close()
    time.sleep(0.3)  # Freed pages go back to the system a little later.
    return {"conversations": number, "megabytes": round(own_megabytes(), 2), **sizes}


def growth(curve: list[dict[str, float]]) -> float:
    """How much more the least of the last third after the warm-up is than that of the first, as a share."""
    warm = [point["megabytes"] for point in curve if point["conversations"] >= WARM_UP * curve[-1]["conversations"]]
    third = max(1, len(warm) // 3)
    return min(warm[-third:]) / min(warm[:third]) - 1


def plot(runs: dict[str, list[dict[str, float]]], path: Path) -> None:
    """The curves, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "handbill"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(runs), figsize=(4.5 * len(runs), 3.2), squeeze=False)
    for panel, (name, curve) in zip(panels[0], runs.items(), strict=True):
        panel.plot([p["conversations"] for p in curve], [p["megabytes"] for p in curve], color="#12343b")
        panel.axvline(WARM_UP * curve[-1]["conversations"], color="#c3cec9", linestyle="--")
        panel.set(title=f"{name}: {growth(curve):+.1%}", xlabel="conversations", ylabel="MB of the tab")
        panel.set_ylim(0, 1.15 * max(p["megabytes"] for p in curve))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """The command ``python tests/bench/soak.py [--tiny 500] [--real 30]``."""
    parser = argparse.ArgumentParser(description="Soak the page in conversations and watch its memory.")
    parser.add_argument("--tiny", type=int, default=500, help="conversations with a tiny random model")
    parser.add_argument("--real", type=int, default=30, help="conversations with SmolLM2; 0 leaves them out")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {}
    # Else the driver's inspector keeps every answer that passes through the service worker: 200 MB after ten visitors.
    os.environ["PLAYWRIGHT_DISABLE_SERVICE_WORKER_NETWORK"] = "1"
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = tabs.launch(playwright)
        version = browser.version
        site = page_models.site(tabs.DIST, Path(folder) / "dist", ("tiny",))
        runs["tiny"] = soak(browser, site, Path(folder) / "tiny", "", arguments.tiny, 25)
        browser.close()
        if arguments.real:
            browser = tabs.launch(playwright)
            home = Path(folder) / "real"
            runs["SmolLM2"] = soak(browser, tabs.DIST, home, "?model=smollm2-135m", arguments.real, 15)
            browser.close()
    result: dict[str, Any] = {"chromium": version, "runs": runs, "growth": {n: growth(c) for n, c in runs.items()}}
    if arguments.tiny >= 500 and arguments.real >= 30:  # What is committed is the whole run.
        (RESULTS / "soak.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        plot(runs, RESULTS / "soak.svg")
    print(json.dumps(result["growth"]))
    return 0 if all(share <= ALLOWED for share in result["growth"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
