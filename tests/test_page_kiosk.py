"""The page as a kiosk: what one visitor leaves behind, the ways out, the bounds, and coming back to life."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Worker

import altered_site
import tabs
from kiosk_tab import kiosk, mark, pass_time, wait_for_another

pytestmark = pytest.mark.page

SECRET = "xylophonic marmalade"


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
WebAssembly.Memory = new Proxy(WebAssembly.Memory, {
    construct(...given) {
        memories.push(Reflect.construct(...given));
        return memories.at(-1);
    },
});
"""
"""Notes every WebAssembly memory of the page or of a worker: MicroPython's, Pyodide's, the kernels'."""

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


KEPT = """async () => {
    const root = await navigator.storage.getDirectory();
    const found = [];
    const walk = async (folder, path) => {
        for await (const [name, entry] of folder.entries()) {
            if (entry.kind === "directory") { await walk(entry, `${path}/${name}`); continue; }
            const bytes = await (await entry.getFile()).arrayBuffer();
            const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
            found.push(`${path}/${name} ${Array.from(digest, (byte) => byte.toString(16)).join("")}`);
        }
    };
    for (let tries = 100; ; tries -= 1) {
        found.length = 0;
        try {
            await walk(root, "");
            break;
        } catch (error) { // A file that the page is just writing goes by another name until it is closed.
            if (!tries || !["NotFoundError", "NotReadableError"].includes(error.name)) throw error;
        }
    }
    const done = (request) => new Promise((resolve) => (request.onsuccess = () => resolve(request.result)));
    for (const { name } of await indexedDB.databases()) {
        const base = await done(indexedDB.open(name));
        for (const store of base.objectStoreNames) {
            const all = base.transaction(store).objectStore(store);
            found.push(JSON.stringify([name, store, await done(all.getAllKeys()), await done(all.getAll())]));
        }
        base.close();
    }
    return [found.sort(), document.cookie, Object.keys(localStorage), Object.keys(sessionStorage)];
}"""
"""All that the page has stored: every file of OPFS by its hash, PyScript's databases, cookies, the two storages."""


def renderers(page: Page) -> dict[int, float]:
    """The processes of the browser's tabs and workers, with their processor seconds: a page's has the most."""
    assert page.context.browser
    session = page.context.browser.new_browser_cdp_session()
    found = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return {each["id"]: each["cpuTime"] for each in found if each["type"] == "renderer"}


def kept_once_settled(page: Page, openings: int) -> list[Any]:
    """KEPT as soon as so many openings have been kept and nothing changes any more."""
    before: list[Any] = [[]]

    def settled() -> bool:
        nonlocal before
        before, last = page.evaluate(KEPT), before
        return before == last and sum("/openings/" in name for name in before[0]) == openings

    tabs.until(page, settled, f"{openings} openings", every_ms=500)
    return before


def engine(page: Page) -> Worker:
    """The worker of the engine, which PyScript starts from a blob; the others are files of ours."""
    (found,) = [worker for worker in page.workers if not worker.url.endswith(".js")]
    return found


def test_a_visitor_leaves_nothing_behind(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    limits = {"idle_seconds": 600, "controls": ["settings"], "system": "Answer in one sentence."}
    site = altered_site.copy(tiny_site, tmp_path / "site")
    altered_site.change(site, "python.mjs", lambda text: KEEP_MEMORIES + text)
    with kiosk(chromium, site, tmp_path, KEEP_MEMORIES, **limits) as tab:
        page = tab.page
        entries = page.evaluate("history.length")
        assert page.is_visible("#attract")
        assert page.evaluate("document.querySelector('main').inert")
        kept_once_settled(page, 1)  # What the slip asks.
        page.click("#attract-questions button")
        tab.answer(0)
        assert page.is_hidden("#attract")
        kept = kept_once_settled(page, 2)  # The kiosk's system prompt alone, too.
        assert kept[1:] == ["", [], []]

        page.click("#open-settings")
        for given in ("#system", "#model-choice", "#runtime-choice", "#adapter-choice", "#storage"):  # The kiosk's own.
            assert page.is_hidden(given)
        page.locator("#storage-items li").first.wait_for(state="attached")
        assert page.is_hidden("#storage"), "though the page knows by now what is kept"
        page.fill("#max_tokens", "9")
        page.keyboard.press("Escape")
        secret = tab.ask(SECRET)
        assert secret["ids"]
        page.focus("#message")
        page.keyboard.type(f"draft: {SECRET}")
        asked = engine(page)
        memories = asked.evaluate("memories.length")
        for memory in (page, asked):  # The search does find what is there.
            assert memory.evaluate(LOOK, SECRET) > 0

        pass_time(tab, 601)
        page.locator("#countdown[open]").wait_for()
        assert "erased" in page.inner_text("#countdown-text")
        page.mouse.click(5, 5)  # Any touch goes on.
        assert page.locator("#countdown[open]").count() == 0
        assert page.input_value("#message") == f"draft: {SECRET}"

        # The reset loads the page anew: there is no other way to empty the memory of two Pythons.
        process = max(renderers(page).items(), key=lambda item: item[1])[0]
        mark(tab)
        pass_time(tab, 700)
        wait_for_another(tab)
        assert page.is_visible("#attract")
        assert asked not in page.workers
        assert SECRET not in page.content()
        assert page.locator(".turn").count() == 0
        assert page.input_value("#message") == ""
        tab.ready()
        assert engine(page).evaluate("memories.length") == memories
        assert engine(page).evaluate(LOOK, SECRET) == 0
        assert found_in_memory(page, SECRET) == []
        assert page.evaluate("history.length") == entries
        assert page.evaluate(KEPT) == kept
        for _ in range(100):  # The page is in another process by now; the visitor's ends when it has been cleared away.
            if process not in renderers(page):
                break
            page.wait_for_timeout(100)
        assert process not in renderers(page)

        # A visitor who comes at once: Undo brings nothing back, and the engine begins with an empty KV cache: all that
        # it has read already is the opening that is kept, the kiosk's own words.
        page.click("#begin")
        page.focus("#message")
        page.keyboard.press("Control+z")
        assert page.input_value("#message") == ""
        assert page.input_value("#max_tokens") == "256"
        assert tab.ask("How?")["reused"] == len("<system>Answer in one sentence.") + 1  # <user> is one token.
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
