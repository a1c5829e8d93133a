"""What prompt lookup brings and what it costs: python tests/bench/cpu/drafts.py.

The assembled page (make site) in two tabs, one of which gets sessions/cpu.js with no drafts allowed, is asked the same
in turn, greedily. One kind of question is answered by repeating the prompt, the other in words of the model's own,
where nothing is to be gained. Writes results/drafts.json; exits 1 if an answer differs between the tabs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Route, sync_playwright

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "web"), str(ROOT / "tests")]

from report import RESULTS, rounded  # noqa: E402

import tabs  # noqa: E402

ROUNDS = 5
TOKENS = 160
PROMPTS = {
    "repeats the prompt": "Repeat this exactly: The harbour master walked down each morning to write the thickness of "
    "the ice beside the date, as his father had done before him. Nobody in the village remembered a winter in which "
    "the ice had come so early. The boats lay fast in the harbour, and the boys who should have been mending nets were "
    "skating between the hulls with sacks tied over their boots.",
    "own words": "Tell me about the seasons of the year and what people do in each of them.",
}
ALLOWED, FORBIDDEN = "const DRAFTS = 3;", "const DRAFTS = 0;"

KEEP_DONE = """
addEventListener("DOMContentLoaded", () => {
  new BroadcastChannel(handbill.channel).onmessage = ({data}) => {
    const message = JSON.parse(data);
    if (message.kind === "done") self.done = message;
  };
});
"""


def main() -> None:
    figures: dict[str, dict[str, list[float]]] = {}
    same = True
    with sync_playwright() as playwright, tabs.serving(tabs.DIST) as address:
        browser = tabs.launch(playwright)
        opened = {"with drafts": open_tab(browser, address, True), "without": open_tab(browser, address, False)}
        for number in range(ROUNDS + 1):
            for name, prompt in PROMPTS.items():
                # Who is first takes turns: a processor that has been busy for a while is slower.
                names = list(opened) if number % 2 else list(opened)[::-1]
                answers = {which: ask(opened[which], prompt) for which in names}
                same &= answers["with drafts"]["ids"] == answers["without"]["ids"]
                if number == 0:
                    continue  # V8 is still compiling.
                for which, done in answers.items():
                    speed = done["tokens_per_second"]
                    figures.setdefault(name, {}).setdefault(which, []).append(speed)
                    print(f"{number}/{ROUNDS} {name}, {which}: {speed:.1f} tokens/s", flush=True)
        version = browser.version
        browser.close()
    result = {
        "machine": f"{os.cpu_count()}-core x86 machine without a GPU",
        "chromium": version,
        "same_answers": same,
        "tokens_per_second": figures,
        "ratio": {
            name: statistics.median(a / b for a, b in zip(each["with drafts"], each["without"], strict=True))
            for name, each in figures.items()
        },
    }
    (RESULTS / "drafts.json").write_text(json.dumps(rounded(result), indent=1) + "\n", "utf-8")
    print(json.dumps(rounded(result), indent=1))
    if not same:
        sys.exit("Drafts have changed an answer.")


def open_tab(browser: Browser, address: str, drafts: bool) -> tabs.Tab:
    """A tab of its own storage, with the model ready."""
    tab = tabs.Tab(browser.new_page(), address)
    tab.page.add_init_script(KEEP_DONE)

    def forbid(route: Route) -> None:
        answer = route.fetch()
        text = answer.text()
        assert ALLOWED in text, f"sessions/cpu.js has no {ALLOWED}"
        route.fulfill(response=answer, body=text.replace(ALLOWED, FORBIDDEN))

    if not drafts:
        tab.page.context.route("**/sessions/cpu.js", forbid)
    tab.open("?runtime=cpu", settings={"temperature": 0, "max_tokens": TOKENS})
    return tab


def ask(tab: tabs.Tab, prompt: str) -> dict[str, Any]:
    """The page's ``done`` for ``prompt`` in a new conversation."""
    if tab.page.locator(".answer").count():
        tab.page.click("#new-chat")
    tab.ask(prompt)
    found: dict[str, Any] = tab.page.evaluate("() => self.done")
    return found


if __name__ == "__main__":
    main()
