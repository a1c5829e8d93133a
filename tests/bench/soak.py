"""Conversations by the hundred in one tab, and the memory it takes: python tests/bench/soak.py (make soak).

500 with a tiny random model and 30 with SmolLM2, each of two short questions and New chat, on the page as it is served.
Writes results/soak.json and soak.svg, and exits with 1 if the memory after the warm-up grows by more than 2 %. Needs
dist/ (make site). ``--tiny 60 --real 0`` is a short one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "web"), str(ROOT / "tests"), str(ROOT / "tests" / "bench" / "cpu")]

from tab import memory  # noqa: E402

import page_models  # noqa: E402
import tabs  # noqa: E402

RESULTS = ROOT / "tests" / "bench" / "results"
ALLOWED = 0.02
WARM_UP = 0.3
"""Share of the conversations after which everything that is allocated once has been."""

CONVERSATION = """async (questions) => {
    const channel = new BroadcastChannel(handbill.channel);
    const field = document.getElementById("message");
    for (const question of questions) {
        const done = new Promise((resolve, reject) => {
            channel.onmessage = ({data}) => {
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
    channel.close();
    document.getElementById("new-chat").click();
}"""


def soak(browser: Browser, site: Path, query: str, count: int, marks: int) -> list[dict[str, float]]:
    """``count`` conversations; megabytes of the tab (PSS, after a garbage collection) at ``marks`` places and at 0."""
    settings = json.dumps(json.dumps({"temperature": 0, "max_tokens": 12}))
    with tabs.serving(site) as address:
        page = browser.new_page()
        page.add_init_script(f"localStorage.setItem('handbill settings ' + location.pathname, {settings})")
        tab = tabs.Tab(page, address)
        tab.open(query)
        session = page.context.new_cdp_session(page)
        session.send("HeapProfiler.enable")
        curve = [look(page, session, 0)]
        started = time.monotonic()
        for number in range(1, count + 1):
            page.evaluate(CONVERSATION, [f"Count to {number}, please.", "And once more?"])
            if number % max(1, count // marks) == 0:
                curve.append(look(page, session, number))
                left = (time.monotonic() - started) / number * (count - number)
                print(f"{query or 'tiny'}: {number} of {count}, {curve[-1]}, {left:.0f} s left", flush=True)
        assert tab.errors == [], tab.errors
        page.close()
    return curve


def look(page: Page, session: CDPSession, number: int) -> dict[str, float]:
    """What the tab takes now, after ``number`` conversations: megabytes of the process and of JavaScript's heap."""
    session.send("HeapProfiler.collectGarbage")
    page.wait_for_timeout(300)
    heap = session.send("Runtime.getHeapUsage")["usedSize"]
    return {"conversations": number, "megabytes": round(memory(), 2), "heap": round(heap / 1e6, 3)}


def growth(curve: list[dict[str, float]]) -> float:
    """How much more the last third after the warm-up takes than the first, as a share."""
    warm = [point["megabytes"] for point in curve if point["conversations"] >= WARM_UP * curve[-1]["conversations"]]
    third = max(1, len(warm) // 3)
    return statistics.mean(warm[-third:]) / statistics.mean(warm[:third]) - 1


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
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = tabs.launch(playwright)
        version = browser.version
        site = page_models.site(tabs.DIST, Path(folder) / "dist", ("tiny",))
        runs["tiny"] = soak(browser, site, "", arguments.tiny, 25)
        browser.close()
        if arguments.real:
            browser = tabs.launch(playwright)
            runs["SmolLM2"] = soak(browser, tabs.DIST, "?model=smollm2-135m", arguments.real, 15)
            browser.close()
    result: dict[str, Any] = {"chromium": version, "runs": runs, "growth": {n: growth(c) for n, c in runs.items()}}
    if arguments.tiny >= 500 and arguments.real >= 30:  # What is committed is the whole run.
        (RESULTS / "soak.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        plot(runs, RESULTS / "soak.svg")
    print(json.dumps(result["growth"]))
    return 0 if all(share <= ALLOWED for share in result["growth"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
