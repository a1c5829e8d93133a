"""A site dressed as a kiosk, in a tab."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser

import dress
import tabs
from links import link
from lone_page import READY, say
from tabs import Tab

ATTRACT = Path(__file__).parents[1] / "web" / "templates" / "attract.html"

SKIP = """self.skipped = 0;
const now = performance.now.bind(performance);
performance.now = () => now() + self.skipped;
let looked = 0;
Date.now = () => (++looked % 2 ? 0 : 4e12);
"""
"""Runs before a page, for ``pass_time``; the clock of the wall jumps about all the while, and nothing may go by it."""


def dressed(site: Path, folder: Path, wanted: dress.Kiosk) -> Path:
    """``folder``: ``site`` as build/assemble.py --kiosk would dress it."""
    shutil.copytree(site, folder, copy_function=link, ignore=shutil.ignore_patterns("index.html*"))
    dress_again(site, folder, wanted)
    return folder


def dress_again(site: Path, folder: Path, wanted: dress.Kiosk) -> None:
    """Dress the kiosk in ``folder`` anew: its index.html is ``site``'s with ``wanted``."""
    page = (site / "index.html").read_text(encoding="utf-8")
    (folder / "index.html").write_text(dress.dress(page, ATTRACT.read_text(encoding="utf-8"), wanted), encoding="utf-8")


def wishes(**changes: Any) -> dress.Kiosk:
    """A kiosk.toml of a title, a greeting, one question and ``changes``."""
    given: dict[str, Any] = {"title": "Ask", "greeting": "Hello, stranger.", "questions": ["Why?"]}
    return dress.Kiosk(**given | changes)


@contextmanager
def kiosk(
    chromium: Browser, site: Path, home: Path, script: str = "", query: str = "", **changes: Any
) -> Iterator[Tab]:
    """``site`` dressed as a kiosk with ``changes`` and opened with ``query`` in a tab, its model ready; ``script`` runs
    before it.
    """
    with tabs.serving(dressed(site, home / "kiosk", wishes(**changes))) as address:
        context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"])
        context.add_init_script(SKIP + script)
        tab = Tab(context.new_page(), address)
        tab.open(query)
        yield tab
        context.close()


@contextmanager
def lone_kiosk(chromium: Browser, site: Path, home: Path, ready: bool = True, **changes: Any) -> Iterator[Tab]:
    """``kiosk`` without its engine, which never comes up (lone_page.py); the page takes it for ``ready``."""
    with tabs.serving(dressed(site, home / "kiosk", wishes(**changes))) as address:
        context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"])
        context.add_init_script(SKIP)
        context.route("**/pyodide.asm.wasm", lambda _: None)
        tab = Tab(context.new_page(), address)
        tab.open(wait=False)
        if ready:
            pretend(tab)
        else:
            up(tab)
        yield tab
        context.close()


def up(tab: Tab) -> None:
    """Until the page of a lone kiosk hears what is said to it."""
    tab.page.wait_for_function("() => self.handbill?.up && handbill.watchdog")


def pretend(tab: Tab) -> None:
    """Have the page of a lone kiosk take its engine for ready."""
    up(tab)
    say(tab, READY)
    tab.page.wait_for_function("() => document.body.dataset.ready")


def mark(tab: Tab) -> None:
    """Remember this document, for ``wait_for_another``."""
    tab.page.evaluate("document.body.dataset.old = 'yes'")


def wait_for_another(tab: Tab) -> None:
    """Until the page has been loaded anew since ``mark``."""
    tab.page.wait_for_function("() => self.handbill && document.body && !document.body.dataset.old", timeout=120_000)


def pass_time(tab: Tab, seconds: float) -> None:
    """Let ``seconds`` pass for this page at once."""
    tab.page.evaluate(f"skipped += {seconds * 1000}")
