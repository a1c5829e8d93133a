"""The page as a kiosk: what one visitor leaves behind, the ways out, the bounds, and coming back to life."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

import dress
import tabs
from links import link
from tabs import Tab

pytestmark = pytest.mark.page

ATTRACT = Path(__file__).parents[1] / "web" / "templates" / "attract.html"
SECRET = "xylophonic marmalade"


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
        context.add_init_script(KEEP_MEMORIES)
        tab = Tab(context.new_page(), address)
        tab.open()
        yield tab
        context.close()


KEEP_MEMORIES = """
self.memories = [];
for (const name of ["instantiate", "instantiateStreaming"]) {
    const original = WebAssembly[name];
    WebAssembly[name] = async (...given) => {
        const made = await original.apply(WebAssembly, given);
        const exports = Object.values((made.instance ?? made).exports);
        memories.push(...exports.filter((value) => value instanceof WebAssembly.Memory));
        return made;
    };
}
"""
"""Notes every WebAssembly memory of the page (MicroPython's), for found_in_memory."""

LOOK = """(text) => {
    const bytes = new TextEncoder().encode(text);
    return memories.filter((memory) => {
        const all = new Uint8Array(memory.buffer);
        for (let at = all.indexOf(bytes[0]); at >= 0; at = all.indexOf(bytes[0], at + 1)) {
            if (bytes.every((byte, i) => all[at + i] === byte)) return true;
        }
        return false;
    }).length;
}"""


def found_in_memory(page: Page, text: str) -> list[str]:
    """Where the page still holds ``text``: strings of JavaScript's heap, and WebAssembly's memory, freed or not."""
    assert page.evaluate("memories.length") > 0
    found = ["WebAssembly"] * int(page.evaluate(LOOK, text))
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.enable")
    session.send("HeapProfiler.collectGarbage")
    chunks: list[str] = []
    session.on("HeapProfiler.addHeapSnapshotChunk", lambda event: chunks.append(event["chunk"]))
    session.send("HeapProfiler.takeHeapSnapshot", {"reportProgress": False})
    session.detach()
    return found + [value for value in json.loads("".join(chunks))["strings"] if text in value]


def test_a_visitor_leaves_nothing_behind(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    with kiosk(chromium, tiny_site, tmp_path, idle_seconds=8, countdown_seconds=4, controls=["settings"]) as tab:
        page = tab.page
        entries = page.evaluate("history.length")
        assert page.is_visible("#attract")
        assert page.evaluate("document.querySelector('main').inert")
        page.click("#attract-questions button")
        first = tab.answer(0)
        assert page.is_hidden("#attract")

        page.click("#open-settings")
        assert page.is_hidden("#system")  # The kiosk's own; what a visitor wrote there might outlive the visit.
        page.fill("#max_tokens", "9")
        page.keyboard.press("Escape")
        secret = tab.ask(SECRET)
        assert secret["ids"]
        page.focus("#message")
        page.keyboard.type(f"draft: {SECRET}")
        assert page.evaluate(LOOK, SECRET) > 0  # The search does find what is there.

        page.locator("#countdown[open]").wait_for()
        assert "erased" in page.inner_text("#countdown-text")
        page.mouse.click(5, 5)  # Any touch goes on.
        assert page.locator("#countdown[open]").count() == 0
        assert page.input_value("#message") == f"draft: {SECRET}"

        page.locator("#attract:not([hidden])").wait_for(timeout=60_000)
        assert SECRET not in page.content()
        assert page.locator(".turn").count() == 0
        assert page.input_value("#message") == ""
        assert page.evaluate("[localStorage.length, sessionStorage.length, history.length]") == [0, 0, entries]
        # A visitor who comes at once: Undo brings nothing back, and the engine begins with an empty KV cache.
        page.click("#begin")
        page.focus("#message")
        page.keyboard.press("Control+z")
        assert page.input_value("#message") == ""
        assert page.input_value("#max_tokens") == "256"
        again = tab.ask("Why?")
        assert (again["ids"], again["reused"]) == (first["ids"], 0)

        # Nobody comes: the page is loaded anew, and its memory has nothing either.
        page.evaluate("document.body.dataset.old = 'yes'")
        page.wait_for_function("() => !document.body.dataset.old", timeout=60_000)
        tab.ready()
        assert page.is_visible("#attract")
        assert found_in_memory(page, SECRET) == []
        assert page.evaluate("history.length") == entries
        assert tab.outside == []


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


def test_a_dead_worker_and_a_lost_device_are_revived(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    with kiosk(chromium, tiny_site, tmp_path) as tab:
        page = tab.page
        page.click("#begin")
        page.evaluate(
            """() => new BroadcastChannel(handbill.channel).postMessage(JSON.stringify(
                {kind: "fault", turn: 0, fault: "device", detail: "The device was lost."}))"""
        )
        page.locator("#alert").wait_for()
        page.locator("#attract:not([hidden])").wait_for(timeout=60_000)
        tab.ready()
        assert page.is_hidden("#alert")

        page.click("#begin")
        page.evaluate("document.body.dataset.old = 'yes'")
        for worker in page.workers:
            if "cpu-pool" not in worker.url:  # The kernels' helpers sleep and hear nothing.
                worker.evaluate("() => { setTimeout(() => self.close(), 100); }")  # Not before it has answered.
        page.wait_for_function("() => !document.body.dataset.old", timeout=120_000)
        tab.ready()
        assert page.is_visible("#attract")
        page.click("#begin")
        assert tab.ask("Why?")["ids"]
