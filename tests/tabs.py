"""Headless Chromium for the tests of the page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request

from fault_server import Mischief, serving

__all__ = ["Mischief", "Tab", "launch", "serving", "until"]

ROOT = Path(__file__).resolve().parent.parent
DIST = Path(os.environ.get("HANDBILL_DIST", ROOT / "dist"))
SCREENSHOTS = ROOT / "tests" / "screenshots"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-features=AutofillServerCommunication",  # Else the browser itself tells Google about every form it sees.
    # A name that is not this machine's own, for what a page may do on plain http in a local network.
    "--host-resolver-rules=MAP handbill.test 127.0.0.1",
]
NO_GPU = ["--disable-gpu"]
SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
LOADED_MS = 180_000
"""A machine with one busy core takes a while for Python and a model; nothing here measures time."""


def launch(playwright: Playwright, *flags: str, gpu: bool = False) -> Browser:
    """Debian's Chromium with ``flags``, without or with WebGPU (by SwiftShader, in software)."""
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium")
    arguments = [*ARGUMENTS, *(SOFTWARE_GPU if gpu else NO_GPU), *flags]
    return playwright.chromium.launch(executable_path=executable, args=arguments)


def until(page: Page, look: Callable[[], object], what: str, every_ms: int = 100) -> None:
    """Wait until ``look()`` finds ``what``. What the page can only promise needs it: ``wait_for_function`` takes the
    promise itself for the truth.
    """
    for _ in range(LOADED_MS // every_ms):
        if look():
            return
        page.wait_for_timeout(every_ms)
    raise AssertionError(f"There is no sign of {what}.")


class Tab:
    """The page in one tab. ``outside`` notes every request to another origin, ``errors`` what went to the console,
    ``lost`` what was asked for and did not come.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.lost: list[str] = []
        self._origin = address.rstrip("/")
        page.context.on("request", self._note)
        page.context.on("requestfailed", lambda request: self.lost.append(f"{request.url} {request.failure}"))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._console)

    def _note(self, request: Request) -> None:
        if not request.url.startswith((self._origin, f"blob:{self._origin}", "data:")):
            self.outside.append(request.url)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def open(self, query: str = "", *, settings: dict[str, Any] | None = None, wait: bool = True) -> None:
        """Load the page with ``query``, the settings chosen beforehand; wait until the model is ready."""
        if settings is not None:
            self.page.add_init_script(
                f"localStorage.setItem('handbill settings ' + location.pathname, {json.dumps(json.dumps(settings))})"
            )
        self.page.goto(f"{self._origin}/{query}")
        if wait:
            self.ready()

    def ready(self) -> str:
        """Wait until the model is open; the words for where it runs. An alarm on the page fails the test."""
        told = "document.getElementById('alert')?.hidden === false"  # Nothing is there while the page is loaded anew.
        self.page.wait_for_function(f"() => document.body?.dataset.ready || {told}", timeout=LOADED_MS)
        alarm = self.alarm()
        assert not alarm, f"{alarm} {self.errors} {self.lost}"
        return str(self.page.evaluate("document.body.dataset.ready"))

    def alarm(self) -> str:
        """The sentence of the alarm and its details, "" if there is none."""
        told = self.page.locator("#alert-told > p, #alert-told .details p").all_text_contents()
        return " ".join(told) if self.page.is_visible("#alert") else ""

    def ask(self, text: str) -> dict[str, Any]:
        """Send ``text`` and wait for the end; {text, ids, reason, reused} of the answer."""
        before = self.page.locator(".answer").count()
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")
        return self.answer(before)

    def answer(self, index: int) -> dict[str, Any]:
        """Wait for the end of answer number ``index``. A fault in its place fails the test."""
        answer = self.page.locator(".answer").nth(index)
        answer.locator("xpath=self::*[@data-ids] | ./p[contains(@class, 'fault')]").first.wait_for(timeout=LOADED_MS)
        assert answer.locator(".fault").count() == 0, answer.inner_text()
        return {
            "text": answer.locator(".body").inner_text(),
            "ids": json.loads(answer.get_attribute("data-ids") or "[]"),
            "reason": answer.get_attribute("data-reason"),
            "reused": int(answer.get_attribute("data-reused") or 0),
        }

    def adapt(self, adapter: str) -> None:
        """Choose ``adapter`` in the settings, and wait until it is in use."""
        self.page.click("#open-settings")
        self.page.select_option("#adapter-choice", adapter)
        self.page.keyboard.press("Escape")
        self.page.wait_for_function("(name) => document.body.dataset.adapter === name", arg=adapter)

    def shoot(self, name: str) -> None:
        """Keep a screenshot."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")
