"""A page of which a file does not come: it tries by itself once, then says so, and never waits in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext

import tabs
from fault_server import Drop, Fault, Refuse
from kiosk_tab import dressed, wishes
from tabs import Mischief, Tab

pytestmark = pytest.mark.page

NO = Refuse(503)
SENTENCE = "The page could not start."

FILES = [
    *("boot.js", "start.js", "kept.js", "style.css", "core.js"),
    *("micropython.wasm", "words.json", "page.py", "markdown.js"),
    *("store.js", "decide.js", "site.json", "manifest.json"),
    *("model.js", "pyodide.asm.mjs", "pyodide.asm.wasm", "pyodide-lock.json", "snapshot.memory"),
    "engine.py",
    *("tokenizers.min.mjs", "cpu.js", "cpu-kv.js", "threads.wasm", "cpu-loader.js", "cpu-load.js", "cpu-pool.js"),
]
"""One of every way in which a file is asked for: by the page, PyScript, MicroPython, the store, the engine's worker."""


@pytest.fixture(scope="module")
def whole(chromium: Browser, tiny_site: Path) -> str:
    """Where the model runs when every file comes."""
    with tabs.serving(tiny_site) as address, chromium.new_context() as context:
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny")
        return tab.ready()


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_comes_at_the_second_try(context: BrowserContext, tiny_site: Path, name: str, whole: str) -> None:
    fault: Fault = Drop(2000) if name == "pyodide.asm.wasm" else NO
    mischief = Mischief({name: [fault]})
    with tabs.serving(tiny_site, mischief) as address:
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny")
        assert mischief.faults[name] == []
        assert tab.ready() == whole, "nothing runs slower for it"
        assert tab.page.evaluate("Object.keys(sessionStorage)") == [], "the next fault has its second try, too"
        assert tab.page.evaluate("getComputedStyle(document.body).getPropertyValue('--soft')"), "it has its style"


@pytest.mark.parametrize("name", ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm"])
def test_the_other_runtime_has_its_second_try_too(context: BrowserContext, tiny_site: Path, name: str) -> None:
    mischief = Mischief({name: [NO]})
    with tabs.serving(tiny_site, mischief) as address:
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny&runtime=wasm")
        assert "WASM" in tab.ready()
        assert mischief.faults[name] == []


@pytest.mark.parametrize("name", ["words.json", "decide.js", "pyodide.asm.wasm", "tokenizers.min.mjs"])
def test_a_file_that_never_comes_is_said(context: BrowserContext, tiny_site: Path, name: str) -> None:
    """Before MicroPython is up, by the store, by Python's boot, and while the model is opened."""
    mischief = Mischief({name: [NO, NO]})
    with tabs.serving(tiny_site, mischief) as address:
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny", wait=False)
        tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
        assert SENTENCE in tab.alarm()
        assert ("store.js" if name == "decide.js" else name) in tab.alarm()
        tab.page.click("#retry")
        tab.page.locator("#alert").wait_for(state="hidden")
        tab.ready()


def test_without_a_service_worker_the_page_starts(context: BrowserContext, tiny_site: Path) -> None:
    mischief = Mischief({"service.js": [NO] * 9}, isolated=False)
    with tabs.serving(tiny_site, mischief) as address:
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny")
        assert "one thread" in tab.ready()
        assert len(mischief.of("?model=tiny")) == 1, "it was not loaded anew"


def test_plain_http_has_its_second_try_too(context: BrowserContext, tiny_site: Path) -> None:
    """Where there is no service worker at all."""
    mischief = Mischief({"words.json": [NO]})
    with tabs.serving(tiny_site, mischief) as address:
        tab = Tab(context.new_page(), address.replace("127.0.0.1", "handbill.test"))
        tab.open("?model=tiny")
        assert not tab.page.evaluate("isSecureContext")
        assert mischief.faults["words.json"] == []
        assert tab.page.evaluate("handbill.ready && Object.keys(sessionStorage).length === 0")


def test_a_page_that_cannot_start_is_not_left_for_a_server_that_is_gone(
    context: BrowserContext, tiny_site: Path
) -> None:
    document = "?model=tiny"
    mischief = Mischief({"snapshot.memory": [NO], document: [None, NO]})
    with tabs.serving(tiny_site, mischief) as address:
        tab = Tab(context.new_page(), address)
        tab.open(document, wait=False)
        tab.page.evaluate("document.body.dataset.old = 'yes'")
        tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
        assert SENTENCE in tab.alarm()
        assert tab.page.evaluate("document.body.dataset.old") == "yes"


@pytest.mark.parametrize("name", ["words.json", "engine.py"])
def test_a_kiosk_goes_on_trying(chromium: Browser, tiny_site: Path, tmp_path: Path, name: str) -> None:
    site = dressed(tiny_site, tmp_path / "kiosk", wishes())
    mischief = Mischief({name: [NO, NO, NO]})
    with tabs.serving(site, mischief) as address:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(address)
        page.wait_for_function("() => document.body?.dataset.ready", timeout=tabs.LOADED_MS)
        assert mischief.faults[name] == []
        assert page.is_visible("#attract") and page.is_hidden("#alert")
        context.close()
