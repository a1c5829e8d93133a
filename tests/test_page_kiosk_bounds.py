"""The page as a kiosk: no way out of it, and everything a visitor may do, by touch and by keyboard."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from kiosk_tab import kiosk, lone_kiosk, mark, pass_time, wait_for_another
from lone_page import DONE, say
from tabs import Tab

pytestmark = pytest.mark.page

KEYS = """(keys) => keys.map((init) => !window.dispatchEvent(
    new KeyboardEvent("keydown", {...init, modifierAltGraph: init.altGraph, cancelable: true, bubbles: true})))"""


def write(tab: Tab, text: str, turn: int = 1) -> None:
    """Ask something on a lone kiosk, or go on with what was asked, and have ``text`` as the answer of that turn."""
    if tab.page.locator(".answer.busy").count() == 0:
        tab.page.fill("#message", "Hello")
        tab.page.press("#message", "Enter")
    say(tab, {"kind": "piece", "turn": turn, "text": text})
    say(tab, DONE, turn=turn)
    tab.page.locator(".answer[data-ids]").wait_for()


def test_there_is_no_way_out(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    with lone_kiosk(chromium, tiny_site, tmp_path) as tab:
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
            {"key": "Home", "altKey": True},
            {"key": "BrowserBack"},
            {"key": "+", "ctrlKey": True},
            {"key": "-", "ctrlKey": True},
            {"key": "Delete", "ctrlKey": True, "shiftKey": True},  # Clears the browser's data, the model with it.
            {"key": "C", "ctrlKey": True, "shiftKey": True},
            {"key": "c", "ctrlKey": True, "shiftKey": True},  # So it reads with Caps Lock.
            {"key": "v", "metaKey": True, "shiftKey": True},
            {"key": "a", "altKey": True, "shiftKey": True},
            {"key": "Escape", "shiftKey": True},
        ]
        fine = [
            {"key": "a"},
            {"key": "F"},
            {"key": "a", "ctrlKey": True},
            {"key": "A", "ctrlKey": True},  # With Caps Lock.
            {"key": "ArrowLeft", "ctrlKey": True, "shiftKey": True},
            {"key": "Escape"},
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
        write(tab, "See [this](https://outside.test/) or <https://outside.test/>.")
        assert "https://outside.test/" in page.inner_text(".answer .body")
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


def test_nothing_zooms_the_page(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    """Chromium would keep it for the site, visitor after visitor."""
    with lone_kiosk(chromium, tiny_site, tmp_path, greeting="Hello. " * 40) as tab:
        page = tab.page
        session = page.context.new_cdp_session(page)
        for place in ("#attract", "#message"):
            box = page.locator(place).bounding_box()
            assert box
            middle = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
            session.send("Input.synthesizePinchGesture", {**middle, "scaleFactor": 3, "gestureSourceType": "touch"})
            assert page.evaluate("visualViewport.scale") == 1
            page.evaluate(
                """self.turned = [];
                addEventListener("wheel", (event) => turned.push(event.defaultPrevented), {once: true});"""
            )
            page.mouse.move(middle["x"], middle["y"])
            page.keyboard.down("Control")
            page.mouse.wheel(0, -240)
            page.keyboard.up("Control")
            page.wait_for_function("() => turned.length")
            assert page.evaluate("turned") == [True]
            if place == "#attract":
                page.click("#begin")
        page.evaluate("addEventListener('wheel', (event) => turned.push(event.defaultPrevented), {once: true})")
        page.mouse.wheel(0, 240)
        page.wait_for_function("() => turned.length > 1")
        assert page.evaluate("turned") == [True, False]  # Scrolling it may.
        assert page.evaluate("devicePixelRatio") == 1


def test_what_was_copied_is_gone_for_the_next(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    with lone_kiosk(chromium, tiny_site, tmp_path, controls=["copy"]) as tab:
        page = tab.page
        page.click("#begin")
        write(tab, "An answer.")
        page.click(".answer [data-act=copy]")
        page.locator(".answer button", has_text="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == "An answer."
        mark(tab)
        pass_time(tab, 600)
        wait_for_another(tab)
        page.locator("#attract:not([hidden])").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == ""


def test_theme_language_and_controls_are_those_of_the_file(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    given = {"theme": "dark", "language": "de", "controls": ["copy", "again"]}
    with lone_kiosk(chromium, tiny_site, tmp_path / "dark", **given) as tab:
        page = tab.page
        assert page.inner_text("#begin") == "Zum Beginnen berühren"
        page.click("#begin")
        assert page.inner_text("#send") == "Senden"
        write(tab, "Guten Tag.")
        assert page.is_visible(".answer [data-act=copy]") and page.is_hidden("#new-chat")
        page.click(".answer [data-act=again]")
        write(tab, "Guten Abend.", turn=2)
        assert page.inner_text(".answer .body") == "Guten Abend."
        assert page.locator(".turn").count() == 2
        dark = page.evaluate(ground)
        page.emulate_media(color_scheme="light")
        assert page.evaluate(ground) == dark
    with lone_kiosk(chromium, tiny_site, tmp_path / "light", theme="light") as tab:
        light = tab.page.evaluate(ground)
        tab.page.emulate_media(color_scheme="dark")
        assert tab.page.evaluate(ground) == light != dark
        assert tab.page.inner_text("#begin") == "Touch to begin"
        tab.page.evaluate("document.documentElement.dataset.theme = 'auto'")
        assert tab.page.evaluate(ground) == dark


def test_an_answer_is_stopped_on_the_screen(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    """What the engine then does: test_page_site.py."""
    with lone_kiosk(chromium, tiny_site, tmp_path) as tab:
        page = tab.page
        page.click("#begin")
        page.fill("#message", "Hello")
        page.press("#message", "Enter")
        box = page.locator("#send.stop").bounding_box()
        assert box and min(box["width"], box["height"]) >= 56
        page.evaluate(
            """() => {
                const channel = new BroadcastChannel(handbill.channel);
                channel.onmessage = ({data}) => {
                    if (JSON.parse(data).kind === "stop") self.stopped = JSON.parse(data).turn;
                };
            }"""
        )
        page.click("#send.stop")
        page.wait_for_function("() => self.stopped === 1")


def test_the_keyboard_alone_is_enough(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    focused = "document.activeElement.id || document.activeElement.textContent"
    given = {"questions": ["Why?", "How?"], "controls": ["new-chat", "settings"], "idle_seconds": 600}
    with kiosk(chromium, tiny_site, tmp_path, **given) as tab:
        page, keys = tab.page, tab.page.keyboard
        assert page.evaluate(focused) == "begin"
        keys.press("Tab")
        keys.press("Tab")
        assert page.evaluate(focused) == "How?"
        keys.press("Enter")  # A slip asks its question.
        assert tab.answer(0)["ids"] is not None
        assert page.inner_text(".question p") == "How?"
        assert page.evaluate(focused) == "message"
        keys.type("And now?")
        keys.press("Enter")
        tab.answer(1)
        keys.press("Shift+Tab")
        while page.evaluate(focused) not in ("new-chat", "begin"):
            keys.press("Shift+Tab")
        assert page.evaluate(focused) == "new-chat"
        keys.press("Space")
        assert page.locator(".turn").count() == 0
        page.evaluate("document.getElementById('message').focus()")
        pass_time(tab, 605)
        page.locator("#countdown[open]").wait_for()
        assert page.evaluate(focused) == "go-on"
        keys.press("Enter")
        page.locator("#countdown:not([open])").wait_for(state="attached")
        assert page.is_hidden("#attract")
        mark(tab)
        pass_time(tab, 700)
        wait_for_another(tab)
        page.wait_for_function("() => document.activeElement.id === 'begin'")
        keys.press("Enter")
        assert page.evaluate(focused) == "message" and page.is_hidden("#attract")
