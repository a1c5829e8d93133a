"""Headless Chromium for the tests of the page, and a server that can misbehave on request."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request

import serve

ROOT = Path(__file__).resolve().parent.parent
DIST = Path(os.environ.get("HANDBILL_DIST", ROOT / "dist"))
SCREENSHOTS = ROOT / "tests" / "screenshots"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # A name that is not this machine's own, for what a page may do on plain http in a local network.
    "--host-resolver-rules=MAP handbill.test 127.0.0.1",
]
NO_GPU = ["--disable-gpu"]
SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
LOADED_MS = 180_000
"""A machine with one busy core takes a while for Python and a model; nothing here measures time."""


def launch(playwright: Playwright, *, gpu: bool = False) -> Browser:
    """Debian's Chromium, without or with WebGPU (by SwiftShader, in software)."""
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium")
    return playwright.chromium.launch(executable_path=executable, args=ARGUMENTS + (SOFTWARE_GPU if gpu else NO_GPU))


@dataclass
class Mischief:
    """What the server does wrong, by file name.

    It flips a byte in the first ``corrupt[name]`` answers and ends the first ``cut[name]`` answers half-way;
    ``isolated`` False leaves out COOP and COEP. ``asked`` notes (name, Range header) of every answer with a body.
    """

    corrupt: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    isolated: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)


class Handler(serve.Handler):
    """serve.py's handler with some mischief."""

    mischief: Mischief

    def _host_is_ours(self) -> bool:
        return True

    def _origin_is_ours(self) -> bool:
        return True

    def _head(self, status: Any, headers: dict[str, str]) -> None:
        if self.mischief.isolated:
            super()._head(status, headers)
            return
        self.send_response(status)
        for name, value in {**serve.HEADERS, **headers}.items():
            if not name.startswith("Cross-Origin"):
                self.send_header(name, value)
        self.end_headers()

    def _copy(self, file: Any, first: int, left: int) -> None:
        name = self.path.rpartition("/")[2]
        self.mischief.asked.append((name, self.headers.get("Range")))
        if self.mischief.corrupt.get(name, 0) > 0:
            self.mischief.corrupt[name] -= 1
            file.seek(first)
            data = bytearray(file.read(left))
            data[len(data) // 2] ^= 1
            self.wfile.write(data)
        elif self.mischief.cut.get(name, 0) > 0:
            self.mischief.cut[name] -= 1
            super()._copy(file, first, left // 2)
            self.wfile.flush()
            time.sleep(0.5)  # Bytes that a browser has not handed on when the connection breaks are lost to the page.
            self.close_connection = True
        else:
            super()._copy(file, first, left)


@contextlib.contextmanager
def serving(dist: Path, mischief: Mischief | None = None) -> Iterator[str]:
    """Serve ``dist`` on a free port for the length of a ``with`` block; its address, ending in a slash."""
    handler = type("Mischievous", (Handler,), {"mischief": mischief or Mischief()})
    server = serve.Server(dist, 0)
    server.RequestHandlerClass = handler
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Tab:
    """The page in one tab. ``outside`` notes every request to another origin, ``errors`` what went to the console."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.outside: list[str] = []
        self.errors: list[str] = []
        self._origin = address.rstrip("/")
        page.context.on("request", self._note)
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
        self.page.wait_for_function(
            "() => document.body.dataset.ready || !document.getElementById('alert').hidden", timeout=LOADED_MS
        )
        alarm = self.alarm()
        assert not alarm, f"{alarm} {self.errors}"
        return str(self.page.evaluate("document.body.dataset.ready"))

    def alarm(self) -> str:
        """The sentence of the alarm, "" if there is none."""
        return self.page.inner_text("#alert-text") if self.page.is_visible("#alert") else ""

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

    def shoot(self, name: str) -> None:
        """Keep a screenshot."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")
