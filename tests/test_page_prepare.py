"""A kiosk's suggested questions on the page: read ahead while nobody asks, and kept for the next visits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

import altered_site
from handbill.manifest import NAME
from kiosk_tab import dress_again, kiosk, wishes
from tabs import Tab
from test_page_kiosk import KEPT, kept_once_settled

pytestmark = pytest.mark.page

KIOSK: dict[str, Any] = {"system": "Answer in one sentence.", "questions": ["Why is that so?", "How is it done?"]}
UNPREPARED = """
const post = BroadcastChannel.prototype.postMessage;
BroadcastChannel.prototype.postMessage = function (text) {
    if (self.heard || JSON.parse(text).kind !== "prepare") post.call(this, text);
};
"""
"""The engine hears of no question before it is asked, unless HEARD runs too."""

HEARD = "self.heard = true;"


def tap(tab: Tab, number: int) -> tuple[int, int, list[int]]:
    """Touch that slip of the attract screen; (prompt tokens, those of them that were not read again, answer)."""
    tab.page.evaluate(
        """() => {
            const channel = new BroadcastChannel(handbill.channel);
            channel.onmessage = ({data}) => {
                if (JSON.parse(data).kind === "done") self.done = JSON.parse(data);
            };
        }"""
    )
    tab.page.locator("#attract-questions button").nth(number).click()
    answer = tab.answer(0)
    tab.page.wait_for_function("() => self.done")
    done = tab.page.evaluate("done")
    return done["prompt_tokens"], done["reused_tokens"], answer["ids"]


def another(page: Page, address: str, script: str = "") -> Tab:
    """Another visit of the same browser."""
    tab = Tab(page.context.new_page(), address)
    tab.page.add_init_script(script)
    tab.open()
    return tab


def test_a_slip_is_answered_without_reading_it_again(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    site = altered_site.copy(tiny_site, tmp_path / "site")
    altered_site.change_json(site, f"models/tiny/{NAME}", lambda manifest: manifest["generation"].update(temperature=0))
    with kiosk(chromium, site, tmp_path, UNPREPARED, **KIOSK) as tab:
        address = tab.page.url
        prompt, reused, right = tap(tab, 1)
        assert reused == 0
        tab = another(tab.page, address, HEARD)
        kept_once_settled(tab.page, 3)  # The system prompt alone, too.
        tab.page.reload()
        tab.ready()
        assert tap(tab, 1) == (prompt, prompt - 1, right)

        # Other words before the question: what is kept is of no use, and found by nobody.
        changed = wishes(**KIOSK | {"system": "Answer in three words."})
        dress_again(tiny_site, tmp_path / "kiosk", changed)
        other = another(tab.page, address)
        prompt, reused, _ = tap(other, 1)
        assert prompt > 20 and reused == 0


TAP_LAST = """
const post = BroadcastChannel.prototype.postMessage;
let held = null;
BroadcastChannel.prototype.postMessage = function (text) {
    const { kind } = JSON.parse(text);
    if (kind === "prepare" && TOGETHER && !sessionStorage.tapped) held = text;
    else {
        if (kind === "ask" && held) post.call(this, held);
        post.call(this, text);
    }
    if (kind !== "prepare" || sessionStorage.tapped) return;
    sessionStorage.tapped = self.prepared = true;
    document.querySelector("#attract-questions button:last-child").click();
};
"""


@pytest.mark.parametrize("together", ["true", "false"])
def test_a_visitor_who_comes_meanwhile_comes_first(
    chromium: Browser, tiny_site: Path, tmp_path: Path, together: str
) -> None:
    """The engine is asked before it has begun to read ahead, or while it does: the rest is left for the next visit."""
    questions = [f"{number}: {'Why is that so? ' * 6}" for number in range(6)]
    at_once = TAP_LAST.replace("TOGETHER", together)
    with kiosk(chromium, tiny_site, tmp_path, at_once, questions=questions) as tab:
        tab.page.wait_for_function("() => self.prepared")
        assert tab.answer(0)["ids"] is not None
        kept = [name for name in tab.page.evaluate(KEPT)[0] if "/openings/" in name]
        assert len(kept) < len(questions)
        assert tab.errors == []
        tab.page.reload()
        tab.ready()
        kept_once_settled(tab.page, len(questions))
