"""The foot of the page: status line, alarm, message field, and the end of the answer kept in sight (MicroPython)."""

import js
from js import Event
from pyscript import document
from pyscript.js_modules import markdown

import words
from dom import by_id, element, label, on, renew, write

NEAR_END_PX = 96


class Desk:
    """Where the visitor writes and is told what is going on."""

    def __init__(self) -> None:
        self._busy = False
        self._following = True
        self._alarm: object = None  # What says the sentence shown, None while there is none.
        self._notice: object = None
        self._field = by_id("message")
        on(by_id("composer"), "input", lambda _: self._fit())
        on(by_id("composer"), "beforeinput", markdown.tame)
        on(by_id("composer"), "keydown", self._on_key)
        on(by_id("jump"), "click", lambda _: self.follow_again())
        on(js.window, "scroll", self._on_scroll)
        self._fit()
        self.focus()

    # The message field.

    def length(self) -> int:
        """Characters of what the visitor wrote so far (UTF-16 units, as JavaScript counts)."""
        return int(self._field.textLength)

    def take(self) -> str:
        """What the visitor wrote; the field is then empty."""
        text: str = self._field.value.strip()
        if text:
            self._field.value = ""
            self._fit()
        return text

    def give_back(self, text: str) -> None:
        """Put ``text`` back into the field, unless the visitor has written something else meanwhile."""
        if not self._field.value:
            self._field.value = text
            self._fit()

    def forget(self) -> None:
        """Leave nothing of what was written or read aloud."""
        self._field = renew(self._field)
        self._fit()
        self.hush()

    def focus(self) -> None:
        """Put the cursor into the field."""
        self._field.focus()

    def prompt(self, row: str) -> None:
        """Let the empty field say that row of words.json."""
        self._field.dataset.wordPlaceholder = row
        self._field.placeholder = words.say(row)

    def busy(self, busy: bool) -> None:
        """Whether an answer is under way: the button then stops it."""
        self._busy = busy
        button = by_id("send")
        label(button, "desk.stop" if busy else "desk.send")
        button.classList.toggle("stop", busy)
        if busy:
            self.follow_again()
        else:
            by_id("jump").hidden = True
            self.follow()
            self.focus()

    def _fit(self) -> None:
        """Let the field grow with its text."""
        self._field.style.height = "auto"
        self._field.style.height = f"{self._field.scrollHeight}px"

    def _on_key(self, event: Event) -> None:
        if event.target.tagName == "TEXTAREA" and event.key == "Enter" and not event.shiftKey and not event.isComposing:
            event.preventDefault()
            if not self._busy:
                by_id("composer").requestSubmit()

    # What is going on.

    def status(self, text: str, share: "float | None") -> None:
        """Say ``text``; the bar shows ``share`` percent, or nothing."""
        write(by_id("status-text"), text)
        bar = by_id("bar")
        bar.classList.toggle("off", share is None)
        if share is not None:
            bar.setAttribute("aria-valuenow", str(round(share)))
            bar.firstElementChild.style.setProperty("transform", f"scaleX({share / 100:.4f})")

    def alarm(self, sentence: "object", detail: str = "") -> None:
        """What keeps the page from working, ``sentence()`` as in ``notice``, with a button to load it again."""
        self._alarm = sentence
        by_id("alert-text").textContent = sentence()  # type: ignore[operator]
        more = by_id("alert-more")
        more.lastElementChild.textContent = detail
        more.hidden = not detail
        more.open = False
        by_id("alert").hidden = False
        self.status("", None)

    def calm(self) -> None:
        """Take the alarm away."""
        self._alarm = None
        by_id("alert").hidden = True

    def notice(self, sentence: "object") -> None:
        """What the visitor should know and need not act upon: ``sentence()``, now and in any language that is chosen
        later; None takes it away.
        """
        self._notice = sentence
        by_id("notice").textContent = sentence() if sentence else ""  # type: ignore[operator]
        by_id("notice").hidden = not sentence

    def redraw(self) -> None:
        """Say alarm and notice in the language of now."""
        if self._alarm:
            by_id("alert-text").textContent = self._alarm()  # type: ignore[operator]
        self.notice(self._notice)

    def speak(self, text: str) -> None:
        """Have a screen reader read ``text`` after what it was given before."""
        if text:
            by_id("live").append(element("span", "", markdown.legible(text) + " "))

    def hush(self) -> None:
        """Forget what was given to read."""
        by_id("live").replaceChildren()

    # The end of the answer.

    def follow(self) -> None:
        """Keep the end of the answer in sight, unless the reader has scrolled up."""
        if self._following:
            js.window.scrollTo(0, document.documentElement.scrollHeight)
        else:
            by_id("jump").hidden = not self._busy

    def follow_again(self) -> None:
        """Go to the end, and follow it from now on."""
        self._following = True
        self.follow()
        by_id("jump").hidden = True

    def _on_scroll(self, _: Event) -> None:
        root = document.documentElement
        self._following = root.scrollHeight - js.window.scrollY - js.window.innerHeight < NEAR_END_PX
        if self._following:
            by_id("jump").hidden = True
