"""The page without its engine, which says on the channel what a test wants: pasting, copying, drawing, languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from lone_page import DONE, READY, ask, fault, lone_page, say

pytestmark = pytest.mark.page


def test_a_picture_without_a_description_is_called_one_in_the_pages_language(
    chromium: Browser, tiny_site: Path
) -> None:
    with lone_page(chromium, tiny_site, locale="de-DE") as tab:
        ask(tab, "Hallo")
        say(tab, {"kind": "piece", "turn": 1, "text": "![](https://outside.test/a.png) ![Ein Turm](b.png)"})
        say(tab, DONE, turn=1)
        tab.page.locator(".answer[data-ids]").wait_for()
        assert tab.page.inner_text(".answer .body") == "[Bild] [Ein Turm]"


def test_a_megabyte_pasted_while_the_model_loads_is_not_drawn_and_not_lost(chromium: Browser, tiny_site: Path) -> None:
    with lone_page(chromium, tiny_site) as tab:
        page = tab.page
        page.evaluate("document.getElementById('message').value = 'word '.repeat(2e5).trim() + '!'")
        page.evaluate("document.getElementById('composer').requestSubmit()")
        assert "once the model is ready" in page.inner_text("#notice")
        assert page.locator(".turn").count() == 0
        assert page.evaluate("document.getElementById('message').value.length") == 1_000_000
        page.evaluate("document.getElementById('message').value = 'word '.repeat(3000)")
        say(tab, READY, characters=14_000)
        page.wait_for_function("() => document.body.dataset.ready")
        # At once: the model's real download goes on behind this page's back, and may still say how far it is.
        said = page.evaluate(
            """() => {
                document.getElementById("composer").requestSubmit();
                return document.getElementById("status-text").innerText;
            }"""
        )
        assert "too long" in said
        page.evaluate("document.getElementById('message').value = 'word '.repeat(2000)")
        page.evaluate("document.getElementById('composer').requestSubmit()")
        assert page.locator(".question").count() == 1


def test_a_copy_that_the_browser_refuses_is_not_said_to_be_done(chromium: Browser, tiny_site: Path) -> None:
    refuse = "void (navigator.clipboard.writeText = () => Promise.reject(new DOMException('No.', 'NotAllowedError')))"
    with lone_page(chromium, tiny_site, permissions=["clipboard-read", "clipboard-write"]) as tab:
        page = tab.page
        ask(tab, "Hello")
        say(tab, {"kind": "piece", "turn": 1, "text": "An answer."})
        say(tab, DONE, turn=1)
        page.locator(".answer[data-ids]").wait_for()
        page.evaluate(refuse)
        page.click(".answer [data-act=copy]")  # The old way does it.
        page.locator(".answer button", has_text=re.compile("^Copied$")).wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == "An answer."
        page.locator(".answer button", has_text=re.compile("^Copy$")).wait_for()
        page.evaluate("document.execCommand = () => false")
        page.click(".answer [data-act=copy]")
        page.locator(".answer button", has_text="Not copied").wait_for()
        page.locator(".answer button", has_text=re.compile("^Copy$")).wait_for()


DEEP = {"quotes": "> " * 5000 + "deep", "lists": "- " * 2000 + "deep"}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_an_answer_that_no_parser_takes_is_shown_as_it_was_written(
    chromium: Browser, tiny_site: Path, text: str
) -> None:
    with lone_page(chromium, tiny_site) as tab:
        page = tab.page
        ask(tab, "Hello")
        say(tab, {"kind": "piece", "turn": 1, "text": text})
        say(tab, DONE, turn=1)
        page.locator(".answer[data-ids]").wait_for(timeout=120_000)
        assert page.locator(".answer.busy").count() == 0
        assert page.evaluate("document.querySelector('.answer .body').textContent") == text
        assert page.inner_text("#send") == "Send"


CHOSEN = {
    "kind": "chosen",
    "slug": "tiny",
    "why": "best",
    "sessions": [],
    "runtimes": ["cpu"],
    "warning": "storage",
    "refusal": "",
    "dropped": "",
    "offers": [
        {"slug": "tiny", "title": "Tiny", "bytes": 1_500_000_000, "refusal": ""},
        {"slug": "big", "title": "Big", "bytes": 9_000_000_000, "refusal": "memory"},
    ],
}


def test_models_notices_and_alarms_follow_the_language(chromium: Browser, tiny_site: Path) -> None:
    with lone_page(chromium, tiny_site, ("**/store.js",), locale="en-GB") as tab:
        page = tab.page
        say(tab, CHOSEN)
        page.locator("#notice").wait_for()
        fault(tab, "memory", "Buffer of 9 GB.")
        page.locator("#alert").wait_for()

        def said() -> list[str]:
            names = page.locator("#model-choice option").all_text_contents()
            return [*names, page.inner_text("#notice"), page.inner_text("#alert-text")]

        english = said()
        assert english[:2] == ["Tiny (1.50 GB)", "Big (9.00 GB, too large for this device)"]
        page.click("#open-settings")
        page.select_option("#language-choice", "de")
        page.wait_for_function("() => document.documentElement.lang === 'de'")
        page.keyboard.press("Escape")
        german = said()
        assert german[:2] == ["Tiny (1,50 GB)", "Big (9,00 GB, zu groß für dieses Gerät)"]
        assert "1,50 GB" in german[2] and "Arbeitsspeicher" in german[3]
        assert page.input_value("#model-choice") == "tiny"
        assert page.inner_text("#alert summary") == "Einzelheiten"
