"""The page without its engine: a test says on the channel what store and engine would (ARCHITECTURE.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser

import tabs
from tabs import Tab

READY: dict[str, Any] = {
    "kind": "ready",
    "slug": "tiny",
    "title": "Tiny",
    "runtime": "cpu 2",
    "moved": "",
    "context": 512,
    "characters": 8192,
    "generation": {},
    "refused": [],
    "is_base": False,
    "takes_system": True,
    "adapters": [],
}

DONE: dict[str, Any] = {
    "kind": "done",
    "reason": "eos",
    "ids": [],
    "prompt_tokens": 20,
    "reused_tokens": 0,
    "tokens": 9,
    "first_token_seconds": 1,
    "tokens_per_second": 9,
}


@contextmanager
def lone_page(chromium: Browser, site: Path, absent: Sequence[str] = (), **context: Any) -> Iterator[Tab]:
    """The page of ``site`` in a new context made with ``context``; its Python worker, and the files of the patterns
    ``absent``, never come up.
    """
    with tabs.serving(site) as address:
        made = chromium.new_context(**context)
        tab = Tab(made.new_page(), address)
        for pattern in ("**/pyodide.asm.wasm", *absent):
            made.route(pattern, lambda _: None)
        tab.open("?runtime=wasm", wait=False)
        tab.page.wait_for_function("() => self.handbill?.up")
        yield tab
        made.close()


def say(tab: Tab, message: dict[str, Any], **fields: Any) -> None:
    """Post ``message`` with ``fields`` on the page's channel."""
    tab.page.evaluate(
        """(message) => {
            const channel = new BroadcastChannel(handbill.channel);
            channel.postMessage(JSON.stringify(message));
            channel.close();
        }""",
        message | fields,
    )


def ask(tab: Tab, text: str, **ready: Any) -> None:
    """Make the page take itself for ready, as READY with ``ready`` has it, and send it ``text``: turn 1 at first."""
    say(tab, READY, **ready)
    tab.page.wait_for_function("() => document.body.dataset.ready")
    tab.page.fill("#message", text)
    tab.page.press("#message", "Enter")


def fault(tab: Tab, kind: str, detail: str, turn: int = 0) -> None:
    """Have the page hear of a fault, of answer ``turn`` or of none."""
    say(tab, {"kind": "fault", "turn": turn, "fault": kind, "detail": detail})
