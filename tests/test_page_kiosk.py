"""The page as a kiosk: the ways out and the bounds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

import dress
import tabs
from links import link
from tabs import Tab

pytestmark = pytest.mark.page

ATTRACT = Path(__file__).parents[1] / "web" / "templates" / "attract.html"


@contextmanager
def kiosk(chromium: Browser, site: Path, home: Path, **changes: Any) -> Iterator[Tab]:
    """``site`` dressed as a kiosk and opened in a tab, its model ready."""
    folder = home / "kiosk"
    shutil.copytree(site, folder, copy_function=link, ignore=shutil.ignore_patterns("index.html*"))
    given: dict[str, Any] = {"title": "Ask", "greeting": "Hello, stranger.", "questions": ["Why?"]}
    page = (site / "index.html").read_text(encoding="utf-8")
    dressed = dress.dress(page, ATTRACT.read_text(encoding="utf-8"), dress.Kiosk(**given | changes))
    (folder / "index.html").write_text(dressed, encoding="utf-8")
    with tabs.serving(folder) as address:
        context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"])
        tab = Tab(context.new_page(), address)
        tab.open()
        yield tab
        context.close()


KEYS = """(keys) => keys.map((init) => !window.dispatchEvent(
    new KeyboardEvent("keydown", {...init, modifierAltGraph: init.altGraph, cancelable: true, bubbles: true})))"""


def test_there_is_no_way_out(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    with kiosk(chromium, tiny_site, tmp_path) as tab:
        page = tab.page
        page.click("#begin")
        out = [
            {"key": "p", "ctrlKey": True},
            {"key": "s", "ctrlKey": True},
            {"key": "o", "ctrlKey": True},
            {"key": "u", "metaKey": True},
            {"key": "F5"},
            {"key": "F12"},
            {"key": "ArrowLeft", "altKey": True},
            {"key": "BrowserBack"},
            {"key": "+", "ctrlKey": True},
        ]
        fine = [
            {"key": "a"},
            {"key": "F"},
            {"key": "a", "ctrlKey": True},
            {"key": "@", "ctrlKey": True, "altKey": True, "altGraph": True},
            {"key": "Enter", "shiftKey": True},
            {"key": "Tab"},
        ]
        assert page.evaluate(KEYS, out) == [True] * len(out)
        assert page.evaluate(KEYS, fine) == [False] * len(fine)
        refused = page.evaluate(
            """() => ["contextmenu", "dragstart", "dragover", "drop", "copy", "cut", "paste"].map(
                (kind) => !document.body.dispatchEvent(new Event(kind, {cancelable: true, bubbles: true})))"""
        )
        assert refused == [True] * 7
        assert page.evaluate(
            """[3, 4].map((button) => !document.body.dispatchEvent(
                new MouseEvent("mouseup", {button, cancelable: true, bubbles: true})))"""
        ) == [True, True]
        tab.ask("See [this](https://outside.test/)")
        assert page.locator("a[href^=http], a[target], form[action], input[type=file], iframe").count() == 0
        assert page.is_hidden("#open-settings") and page.is_visible("#new-chat")
        assert page.locator(".answer [data-act=copy]").is_hidden()
        small = page.evaluate(
            """[...document.querySelectorAll("button, textarea")]
                .map((element) => element.getBoundingClientRect().height)
                .filter((height) => height > 0 && height < 56)"""
        )
        assert small == []
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).display") == "none"
        assert tab.outside == []


def test_answers_and_questions_are_bounded_in_length(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    with kiosk(chromium, tiny_site, tmp_path, answer_tokens=8, message_characters=20) as tab:
        tab.page.click("#begin")
        tab.page.focus("#message")
        tab.page.keyboard.type("x" * 30)
        assert tab.page.input_value("#message") == "x" * 20
        tab.page.keyboard.press("Enter")
        answer = tab.answer(0)
        assert (answer["reason"], len(answer["ids"])) == ("length", 8) or len(answer["ids"]) < 8


@pytest.mark.model
def test_answers_are_bounded_in_time(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    with kiosk(chromium, dist, tmp_path, answer_seconds=1, answer_tokens=4096) as tab:
        tab.page.click("#begin")
        answer = tab.ask("Write a very long story about every animal of the sea, one after the other.")
        assert answer["reason"] == "stopped"
        assert tab.ask("Why?")["ids"]
