"""A page left alone with strangers (MicroPython): attract screen, answers bounded in time, everything erased once
nobody is there, and no way out of the page. What a visitor may do comes from kiosk.toml (build/kiosk.py).
"""

import json
import math

import js
from js import Event
from pyscript import document
from pyscript.ffi import create_proxy

import words
from dom import by_id, on
from turns import empty_clipboard

TICK_MS = 1000

GRACE_SECONDS = 20
"""From Stop until the answer has to be over. Past it the engine hears and does nothing, such as on a hung device."""

EDITING = ("a", "c", "v", "x", "z", "arrowleft", "arrowright", "backspace", "delete", "home", "end")
"""Keys that may be pressed with Control: they do nothing outside a text field. In lower case, for Caps Lock."""

SELECTING = ("arrowleft", "arrowright", "home", "end")
"""Those of them that may be pressed with Shift too: others are the browser's (Delete clears its data, C inspects)."""

REVIVED = ("device", "memory", "internal")
"""Faults of an answer after which the engine cannot be trusted with the next one."""


class Kiosk:
    """The kiosk's side of ``page``: when its visitor comes, stays away, and is forgotten."""

    def __init__(self, page) -> None:  # type: ignore[no-untyped-def]  # page.Page, which imports this module
        self._page = page
        self._limits = json.loads(by_id("kiosk").textContent)
        self._touched = _seconds()
        self._answering = 0.0  # Since when; 0 while no answer is under way.
        self._attracting = True
        self._stale = False  # Somebody was here since the page was loaded.
        self._leaving = 0.0  # When to load the page anew, once it is stale and nobody is here.
        self._copies = "copy" in (document.documentElement.dataset.controls or "").split()
        self._countdown = by_id("countdown")
        page.settings.furnish(self._limits["system"], self._limits["answer_tokens"])
        by_id("message").maxLength = self._limits["message_characters"]
        by_id("message").spellcheck = False
        page.bill.dress(by_id("attract-title").textContent, by_id("attract").querySelector(".greeting").textContent)
        self._attract(True)
        self._lock()
        on(by_id("attract"), "click", self._on_attract)
        on(by_id("go-on"), "click", lambda _: self._countdown.close())
        js.setInterval(create_proxy(self._tick), TICK_MS)

    def ready(self) -> None:
        """The model is ready and nobody waits for it: let it read the questions on the slips."""
        self._page.prepare([slip.textContent for slip in by_id("attract-questions").children])

    def fault(self, kind: str) -> None:
        """``page`` has shown a fault: begin anew by itself where nothing else helps."""
        if kind in REVIVED or not self._page.runtime:
            js.handbill.watchdog.revive()
        elif not by_id("alert").hidden:  # Such as a file found damaged: this visitor may finish, and needs no button.
            self._page.desk.calm()
            self._stale = True

    def reset(self) -> None:
        """Forget the visitor: conversation, drafts, choices, the engine's KV cache; back to the attract screen, and the
        page anew, for what both Pythons have let go of still lies in their memory.
        """
        self._countdown.close()
        self._page.desk.calm()
        if self._page.settings.open:
            by_id("settings").close()
        js.handbill.kept.clear()
        if self._copies:
            empty_clipboard()
        self._page.forget()
        js.window.getSelection().removeAllRanges()
        js.window.scrollTo(0, 0)
        self._attract(True)
        self._stale, self._leaving = True, 0.0
        self._leave()

    def _leave(self) -> None:
        """Load the page anew if a visitor was here, as soon as there is something to load: a model that is only being
        opened would have to begin again.
        """
        now = _seconds()
        if self._stale and self._page.runtime and now >= self._leaving:
            self._leaving = now + self._limits["idle_seconds"]  # The next try, where the page is not to be had.
            js.handbill.watchdog.leave()

    def _attract(self, attracting: bool) -> None:
        self._attracting = attracting
        by_id("attract").hidden = not attracting
        for part in document.querySelectorAll(".skip, .masthead, main, .desk"):
            part.inert = attracting
        self._touched = _seconds()
        if attracting:
            by_id("begin").focus()

    def _on_attract(self, event: Event) -> None:
        self._stale = True
        self._attract(False)
        button = event.target.closest("#attract-questions button")
        if button:
            self._page.send(button.textContent)
        else:
            self._page.desk.focus()

    def _tick(self, *_: object) -> None:
        now = _seconds()
        js.handbill.ticked = js.performance.now()
        if self._page.answer and self._page.runtime:
            self._touched = now  # Somebody waits for it.
            self._answering = self._answering or now
            over = now - self._answering - self._limits["answer_seconds"]
            if over >= GRACE_SECONDS:
                js.handbill.watchdog.revive()
            elif over >= 0:
                self._page.stop()
        else:
            self._answering = 0.0
        idle = now - self._touched
        if self._attracting:
            self._leave()
            return
        left = self._limits["idle_seconds"] + self._limits["countdown_seconds"] - idle
        if left <= 0:
            self.reset()
        elif left <= self._limits["countdown_seconds"]:
            by_id("countdown-text").textContent = words.say("kiosk.erased_in", n=math.ceil(left))
            if not self._countdown.open:
                self._countdown.showModal()

    # No way out.

    def _lock(self) -> None:
        for kind in ("contextmenu", "dragstart", "dragover", "drop"):
            on(js.window, kind, _refuse)
        if not self._copies:
            for kind in ("copy", "cut", "paste"):
                on(js.window, kind, _refuse)
        for kind in ("mousedown", "mouseup", "auxclick"):
            on(js.window, kind, self._on_mouse)
        on(js.window, "keydown", self._on_key)
        on(js.window, "wheel", self._on_wheel, passive=False)  # Else it may not be prevented.
        for kind in ("gesturestart", "gesturechange"):  # Safari's pinch; style.css keeps others from zooming.
            on(js.window, kind, _refuse, passive=False)
        for kind in ("pointerdown", "wheel", "input"):
            on(js.window, kind, self._on_touch)

    def _on_touch(self, _: "Event | None") -> None:
        self._touched = _seconds()
        if self._countdown.open:
            self._countdown.close()

    def _on_mouse(self, event: Event) -> None:
        if event.button:  # Middle scrolls and pastes, the next ones go back and forward in the history.
            event.preventDefault()

    def _on_wheel(self, event: Event) -> None:
        if event.ctrlKey:  # It zooms, a pinch on a touchpad too, and the browser keeps that for the site.
            event.preventDefault()

    def _on_key(self, event: Event) -> None:
        self._on_touch(None)
        key = event.key.lower()
        named = len(key) > 1 and key.startswith(("f", "browser", "launch", "print", "zoom", "context"))
        tasks = key == "escape" and event.shiftKey  # The browser's own list of what runs.
        held = (event.ctrlKey or event.metaKey or event.altKey) and not event.getModifierState("AltGraph")
        edits = not event.altKey and key in (SELECTING if event.shiftKey else EDITING)
        if named or tasks or (held and not edits):
            event.preventDefault()


def _seconds() -> float:
    """Seconds of a clock that nobody can move."""
    return float(js.performance.now()) / 1000


def _refuse(event: Event) -> None:
    event.preventDefault()
