"""The page for everyone: axe on every screen, the keyboard alone, zoom, motion, fingers, ears, right to left."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route

import npm_folder
import tabs
from kiosk_tab import kiosk, pass_time
from lone_page import DONE, ask, fault, lone_page, say
from tabs import Tab

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
        fault(tab, "memory", "Buffer of 9 GB.")
        tab.page.locator("#alert").wait_for()
        assert serious(tab.page) == []
        context.close()


SMALL = {"width": 640, "height": 400}
"""CSS pixels of a window of 1280 by 800 at 200 %, and about those of a phone on its side."""

OUT_OF_REACH = """(scope) => {
    const controls = "button, select, input, textarea";
    const shown = [...document.querySelectorAll(`${scope} :is(${controls}, h1, h2, p)`)].filter(
        (each) => each.checkVisibility() && (each.textContent || each.matches(controls)) && !each.closest(".hidden"));
    const cut = shown.filter((each) => {
        each.focus();
        each.scrollIntoView({ block: each.matches(controls) ? "nearest" : "center" });
        const box = each.getBoundingClientRect();
        const [right, bottom] = [innerWidth + 1, innerHeight + 1]; // A browser scrolls by whole pixels.
        if (box.left < -1 || box.top < -1 || box.right > right || box.bottom > bottom) return true;
        return [box.top + 2, box.bottom - 2].some((y) => {
            const there = document.elementFromPoint(box.x + box.width / 2, y);
            return !there || !(each.contains(there) || there.contains(each));
        });
    });
    return cut.map((each) => each.outerHTML.slice(0, 80));
}"""
"""What within ``scope`` is not wholly in sight, or has something over it, once it has the focus and was scrolled
to no further than it takes; words once they are in the middle."""


def test_a_kiosk_is_for_everyone(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    """axe, motion, and a small screen: the attract screen, the conversation, its settings and the countdown."""
    questions = ["Why is the sky blue, and why is it red in the evening?", "How do bees find their way home?", "Who?"]
    limits = {"idle_seconds": 600, "countdown_seconds": 60, "controls": ["new-chat", "settings"]}
    with kiosk(chromium, tiny_site, tmp_path, questions=questions, greeting="Hello, stranger. " * 9, **limits) as tab:
        page = tab.page
        assert serious(page) == []
        moving = "document.getAnimations().length"
        assert page.evaluate(moving) > 0
        page.emulate_media(reduced_motion="reduce")
        assert page.evaluate(moving) == 0
        page.set_viewport_size(SMALL)  # type: ignore[arg-type]
        assert page.evaluate(OUT_OF_REACH, "#attract") == []
        page.click("#begin")
        for scope in ("main", ".masthead", ".desk"):
            assert page.evaluate(OUT_OF_REACH, scope) == []
        page.click("#open-settings")
        assert page.evaluate(OUT_OF_REACH, "#settings") == []
        page.keyboard.press("Escape")
        pass_time(tab, 601)
        page.locator("#countdown[open]").wait_for()
        assert page.evaluate(OUT_OF_REACH, "#countdown") == []
        page.set_viewport_size({"width": 1280, "height": 800})
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


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
        context = chromium.new_context(viewport=SMALL, reduced_motion="reduce")  # type: ignore[arg-type]
        tab = Tab(context.new_page(), address)
        tab.open("?runtime=wasm", settings=GREEDY)
        page = tab.page
        for scope in ("main", ".masthead", ".desk"):
            assert page.evaluate(OUT_OF_REACH, scope) == []
        page.click("#open-settings")
        page.locator("#storage-items li").first.wait_for()
        assert page.evaluate(OUT_OF_REACH, "#settings") == []
        assert page.evaluate("document.getElementById('settings').scrollWidth <= innerWidth")
        page.keyboard.press("Escape")
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


WRITE = """async ([sentence, count, done]) => {
    const channel = new BroadcastChannel(handbill.channel);
    const say = (message) => channel.postMessage(JSON.stringify({turn: 1, ...message}));
    self.said = [];
    new MutationObserver((records) => {
        const nodes = records.flatMap((record) => [...record.addedNodes]);
        said.push(...nodes.map((node) => [performance.now(), node.textContent.trim()]));
    }).observe(document.getElementById("live"), {childList: true});
    for (let number = 0; number < count; number++) {
        for (const text of sentence.split(/(?<= )/)) {
            say({kind: "piece", text});
            await new Promise((resolve) => setTimeout(resolve, 40));
        }
    }
    say({kind: "piece", text: "And the rest"});
    say(done);
    await new Promise((resolve) => setTimeout(resolve, 300));
    return said;
}"""
"""Writes ``count`` times ``sentence`` in pieces of a word, and notes what is read aloud and when."""


def test_a_screen_reader_is_given_whole_sentences_at_a_humane_pace(chromium: Browser, tiny_site: Path) -> None:
    sentence = "This is one more sentence. "
    with lone_page(chromium, tiny_site) as tab:
        ask(tab, "Hello")
        said = [(at, text) for at, text in tab.page.evaluate(WRITE, [sentence, 25, DONE]) if text]
        assert " ".join(text for _, text in said) == sentence * 25 + "And the rest"
        assert all(text.endswith(".") for _, text in said[:-1])
        gaps = [later - earlier for (earlier, _), (later, _) in pairwise(said[:-1])]
        assert len(gaps) >= 1
        assert min(gaps) >= 1900
        assert tab.page.get_attribute("#live", "aria-live") == "polite"
        assert tab.page.get_attribute("#turns", "aria-live") is None  # Else it would be read letter by letter.


def test_faults_are_said_in_the_pages_language_with_their_details_apart(chromium: Browser, tiny_site: Path) -> None:
    with lone_page(chromium, tiny_site, locale="de-AT") as tab:
        page = tab.page
        ask(tab, "Hallo")
        fault(tab, "too_long", "The conversation is 600 tokens long.", turn=1)
        page.locator(".answer .fault").wait_for()
        assert page.inner_text(".answer .fault").startswith("Das Gespräch ist zu lang")
        assert page.is_hidden(".answer .details p")
        page.click(".answer summary")
        assert page.inner_text(".answer .details p") == "The conversation is 600 tokens long."
        assert page.get_attribute(".answer .details p", "lang") == "en"
        assert page.inner_text(".answer summary") == "Einzelheiten"
        assert page.input_value("#message") == "Hallo"
        for kind, begins in (("memory", "Diesem Gerät ist"), ("device", "Der Grafikchip")):
            fault(tab, kind, f"{kind} in English.")
            page.locator("#alert-text", has_text=begins).wait_for()
            assert page.locator("#alert .details p").all_text_contents() == [f"{kind} in English."]
        assert serious(page) == []


TARGETS = """() => [...document.querySelectorAll("button, select, input, textarea, summary, a")]
    .map((element) => [element, element.getBoundingClientRect()])
    .filter(([element, box]) => box.height && box.bottom > 0 && element.checkVisibility())
    .map(([element, box]) => [element.outerHTML.slice(0, 60), Math.round(box.width), Math.round(box.height)])"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_first_screen_says_it_all_and_fingers_find_every_control(
    chromium: Browser, tiny_site: Path, width: int
) -> None:
    with lone_page(chromium, tiny_site, viewport={"width": width, "height": 844}, has_touch=True) as tab:
        page = tab.page
        page.locator("#fact-load", has_text="once").wait_for()
        found = page.evaluate(TARGETS)
        # What this is, that it runs here and what it costs to load, without scrolling.
        assert "runs here, on this device" in page.inner_text("#bill .lead")
        assert re.fullmatch(r"\d+(\.\d)? MB, once", page.inner_text("#fact-load"))
        for place in ("#headline", "#bill .lead", "#fact-load", "#message"):
            box = page.locator(place).bounding_box()
            assert box, place
            assert box["y"] >= 0, place
            assert box["y"] + box["height"] <= 844, place
        assert page.evaluate("scrollY") == 0, "what has the focus is in sight, and nothing moves for it"
        ask(tab, "Hello")
        say(tab, {"kind": "piece", "turn": 1, "text": "An answer."})
        say(tab, DONE, turn=1)
        page.locator(".answer[data-ids]").wait_for()
        found += page.evaluate(TARGETS)
        for control in ("#message", "#open-settings"):
            page.evaluate("document.querySelector('#turns').style.paddingBlock = '2000px'; scrollTo(0, 1000)")
            page.focus(control)
            assert page.evaluate("scrollY") == 1000, control
        fault(tab, "memory", "Buffer of 9 GB.")
        page.locator("#alert summary").wait_for()
        found += page.evaluate(TARGETS)
        page.click("#open-settings")
        found += page.evaluate(TARGETS)
        assert len(found) > 30
        assert [each for each in found if min(each[1:]) < 44] == []
