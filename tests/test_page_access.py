"""The page for everyone: axe on every screen, the keyboard alone, zoom, motion, and text from right to left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route

import npm_folder
import tabs
from tabs import Tab
from test_page_kiosk import kiosk

pytestmark = pytest.mark.page

GREEDY = {"temperature": 0, "max_tokens": 24}
ARABIC = "ما هي عاصمة فرنسا؟"


def serious(page: Page) -> list[tuple[str, str]]:
    """(rule, element) of what axe finds serious or worse on the screen as it is, in light and in dark."""
    source = npm_folder.install(Path(__file__).parent / "axe") / "axe-core" / "axe.min.js"
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(source.read_text(encoding="utf-8"))
    found: list[tuple[str, str]] = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        violations: list[dict[str, Any]] = page.evaluate(
            "axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations)"
        )
        found += [
            (f"{scheme}: {violation['id']}", node["html"])
            for violation in violations
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]
    page.emulate_media(color_scheme="light")
    return found


def test_axe_finds_nothing_serious_on_any_screen(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        context = chromium.new_context()
        tab = Tab(context.new_page(), address)
        held: list[Route] = []
        context.route("**/pyodide.asm.wasm", lambda route: held.append(route))
        tab.open("?runtime=wasm", settings=GREEDY, wait=False)
        tab.page.wait_for_function("() => handbill?.up")
        assert serious(tab.page) == []  # Loading.
        held[0].continue_()
        tab.ready()
        assert serious(tab.page) == []  # The first screen.
        tab.ask("Hello")
        assert serious(tab.page) == []  # A conversation.
        tab.page.click("#open-settings")
        assert serious(tab.page) == []
        tab.page.keyboard.press("Escape")
        tab.page.evaluate(
            """() => new BroadcastChannel(handbill.channel).postMessage(JSON.stringify(
                {kind: "fault", turn: 0, fault: "memory", detail: "Buffer of 9 GB."}))"""
        )
        tab.page.locator("#alert").wait_for()
        assert serious(tab.page) == []
        context.close()


def test_axe_finds_nothing_serious_on_a_kiosk(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    with kiosk(chromium, tiny_site, tmp_path, idle_seconds=3, countdown_seconds=60) as tab:
        assert serious(tab.page) == []  # The attract screen.
        tab.page.click("#begin")
        tab.page.locator("#countdown[open]").wait_for()
        assert serious(tab.page) == []


def test_the_keyboard_alone_is_enough(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_page(), address)
        tab.open("?runtime=wasm", settings=GREEDY)
        page, keys = tab.page, tab.page.keyboard

        def focused() -> str:
            return str(page.evaluate("document.activeElement.id || document.activeElement.dataset.act"))

        assert focused() == "message"
        keys.type("Hello")
        keys.press("Enter")
        tab.answer(0)
        assert focused() == "message"
        backwards = []
        for _ in range(6):
            keys.press("Shift+Tab")
            backwards.append(focused())
        assert backwards[:4] == ["again", "copy", "open-settings", "new-chat"]
        page.focus("#open-settings")
        keys.press("Enter")
        assert page.evaluate("document.getElementById('settings').contains(document.activeElement)")
        page.focus("#temperature")
        before = page.input_value("#temperature")
        keys.press("ArrowRight")
        assert page.input_value("#temperature") != before
        keys.press("Escape")
        assert focused() == "open-settings"  # Back where it came from.
        page.focus("#new-chat")
        keys.press("Enter")
        assert page.is_visible("#bill")
        page.focus("#examples button")
        keys.press("Enter")
        tab.answer(0)
        assert (
            page.evaluate("getComputedStyle(document.getElementById('message').closest('form')).outlineStyle") != "none"
        )
        page.close()


def test_zoom_motion_and_text_from_right_to_left(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        # A window of 1280 by 800 at 200 % has this many CSS pixels.
        context = chromium.new_context(viewport={"width": 640, "height": 400}, reduced_motion="reduce")
        tab = Tab(context.new_page(), address)
        tab.open("?runtime=wasm", settings=GREEDY)
        page = tab.page
        for _ in range(2):
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.locator("#send").is_visible()
            tab.ask(ARABIC)
        direction = "(element) => getComputedStyle(element).direction"
        assert page.locator(".question p").first.evaluate(direction) == "rtl"
        assert page.locator(".question").first.evaluate(direction) == "ltr"
        page.fill("#message", ARABIC)
        assert page.locator("#message").evaluate(direction) == "rtl"
        page.fill("#message", "Hello")
        assert page.locator("#message").evaluate(direction) == "ltr"
        moving = page.evaluate(
            """() => {
                document.querySelector(".answer").classList.add("busy");
                return [getComputedStyle(document.querySelector(".body > :last-child"), "::after").animationName,
                    getComputedStyle(document.querySelector("#bar i")).transitionDuration];
            }"""
        )
        assert moving == ["none", "0s"]
        context.close()


def test_a_screen_reader_is_given_whole_sentences(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_page(), address)
        tab.open("?runtime=wasm", settings=GREEDY)
        tab.page.evaluate(
            """() => {
                self.said = [];
                new MutationObserver((records) => {
                    const nodes = records.flatMap((record) => [...record.addedNodes]);
                    said.push(...nodes.map((node) => node.textContent.trim()));
                }).observe(document.getElementById("live"), {childList: true});
            }"""
        )
        ids = tab.ask("Hello")["ids"]
        tab.page.wait_for_function("() => said.length")
        said = [text for text in tab.page.evaluate("said") if text]
        assert len(ids) == 24
        assert len(said) < 24
        assert all(text[-1] in ".!?:;" or "\n" in text for text in said[:-1])
        assert tab.page.get_attribute("#live", "aria-live") == "polite"
        assert tab.page.get_attribute("#turns", "aria-live") is None  # Else it would be read letter by letter.
        tab.page.close()
