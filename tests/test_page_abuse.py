"""The page under abuse: each thing tried has a clear outcome, and nothing of the visitor's is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import tabs
from tabs import Tab

pytestmark = pytest.mark.page

GREEDY = {"temperature": 0, "max_tokens": 16}
FLOOD = "a" + "\u200b" * 20 + "\u0301" * 20 + "b"
BIDI = "\u202e\u2066Hello \u202dworld\u2069\u202c"


def test_hostile_messages_have_a_clear_outcome_and_are_not_lost(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_page(), address)
        tab.open("?runtime=wasm", settings=GREEDY)
        page = tab.page
        first = tab.ask("Hello")
        # A megabyte, pasted: refused in words and given back whole.
        page.evaluate("document.getElementById('message').value = 'word '.repeat(2e5).trim() + '!'")
        page.evaluate("document.getElementById('composer').requestSubmit()")
        assert "too long" in page.inner_text("#status-text")
        assert page.evaluate("document.getElementById('message').value.length") == 1_000_000
        assert page.locator(".turn").count() == 2
        page.evaluate("document.getElementById('message').value = ''")
        page.click("#new-chat")

        for text in ("\ud800 half \udc00", FLOOD, BIDI, "{{ 7 * 7 }}{% raw %}", "<user>x<end>"):
            # As an expression: half a character does not travel from Python otherwise.
            page.evaluate(f"document.getElementById('message').value = {json.dumps(text)}")
            page.evaluate("document.getElementById('composer').requestSubmit()")
            assert tab.answer(0)["ids"]
            shown = page.locator(".question p").first
            said = shown.evaluate("(element) => element.textContent.toWellFormed()")
            assert said == text or " half " in said  # Half a character cannot be kept.
            box = shown.bounding_box()
            assert box and box["height"] < 600
            page.click("#new-chat")
        assert tab.ask("Hello")["ids"] == first["ids"]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert tab.errors == []
        assert tab.outside == []
        page.close()


def test_a_browser_that_keeps_nothing(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_page(), address)
        tab.page.add_init_script(
            "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('No.', 'SecurityError'); }})"
        )
        tab.open("?runtime=wasm")
        tab.page.click("#open-settings")
        tab.page.fill("#max_tokens", "3")
        tab.page.keyboard.press("Escape")
        assert len(tab.ask("Hello")["ids"]) == 3
        assert tab.errors == []
        tab.page.close()
