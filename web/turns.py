"""The turns of a conversation on the page: what the visitor wrote and what the model answers (MicroPython)."""

import json

import js
from js import Event
from pyscript import document
from pyscript.ffi import create_proxy
from pyscript.js_modules import markdown

import words

RENDER_EVERY_MS = 60
COPIED_MS = 1600


def element(tag: str, classes: str, text: str = "") -> "js.Element":
    """A new element."""
    made = document.createElement(tag)
    made.className = classes
    made.textContent = text
    return made


def on(target: "js.Element", kind: str, handler: "object") -> None:
    """Call ``handler(event)`` at every ``kind`` event of ``target``, for good."""
    target.addEventListener(kind, create_proxy(handler))


class Question:
    """What the visitor wrote."""

    def __init__(self, parent: "js.Element", text: str) -> None:
        self.root = element("article", "turn question")
        self.root.append(element("h2", "hidden", "You"), element("p", "", text))
        parent.append(self.root)


class Answer:
    """What the model writes, as it grows. ``again`` is called when the visitor wants another one."""

    def __init__(self, parent: "js.Element", again: "object", lead: str = "") -> None:
        self.text = ""
        self._lead = lead  # A base model continues this text; it is shown in front.
        self._spoken = 0
        self._timer = False
        self._rendered: object = None
        self._draw = create_proxy(self._on_timer)  # One for all redraws: MicroPython never frees a proxy.
        self.root = element("article", "turn answer busy")
        self.root.setAttribute("aria-busy", "true")
        self._body = element("div", "body")
        self._foot = element("footer", "foot")
        self._figures = element("p", "figures", "")
        self._copy = element("button", "quiet small", "Copy")
        self._again = element("button", "quiet small", "Again")
        for button in (self._copy, self._again):
            button.type = "button"
            button.hidden = True
        self._copy.setAttribute("aria-label", "Copy this answer")
        self._again.setAttribute("aria-label", "Write this answer again")
        on(self._copy, "click", self._on_copy)
        on(self._again, "click", again)
        self._foot.append(self._figures, self._copy, self._again)
        self.root.append(element("h2", "hidden", "Answer"), self._body, self._foot)
        parent.append(self.root)
        if lead:
            self._render()

    def say(self, text: str) -> None:
        """Show ``text`` in the figures' place, such as what is being waited for."""
        self._figures.textContent = text

    def add(self, piece: str, rendered: "object") -> None:
        """Append ``piece``; it is drawn a few times a second, then ``rendered()`` is called."""
        self.text += piece
        self._rendered = rendered
        if not self._timer:
            self._timer = True
            js.setTimeout(self._draw, RENDER_EVERY_MS)

    def _on_timer(self, *_: object) -> None:
        self._timer = False
        self._render()
        self._rendered()  # type: ignore[operator]

    def _render(self) -> None:
        markdown.show(self._body, self._lead + self.text)

    def unspoken(self, final: bool) -> str:
        """Sentences that no screen reader has been given yet; at the end, whatever is left."""
        end = len(self.text) if final else words.sentences(self.text, self._spoken)
        fresh = self.text[self._spoken : end]
        self._spoken = end
        return fresh.strip()

    def finish(self, done: dict) -> None:  # type: ignore[type-arg]
        """The end: figures and buttons. The token ids stay on the element, for tests and the curious."""
        self._render()
        self._close(words.figures(done))
        self.root.dataset.ids = json.dumps(done["ids"])
        self.root.dataset.reason = done["reason"]
        self.root.dataset.reused = str(done["reused_tokens"])
        self._copy.hidden = not self.text
        self._again.hidden = False

    def fail(self, sentence: str) -> None:
        """The answer will not come, or not go on."""
        self._render()
        self._close("")
        self.root.insertBefore(element("p", "fault", sentence), self._foot)
        self._copy.hidden = not self.text
        self._again.hidden = True

    def retire(self) -> None:
        """A later turn follows: only the last answer can be written again."""
        self._again.hidden = True

    def _close(self, figures: str) -> None:
        self.root.classList.remove("busy")
        self.root.removeAttribute("aria-busy")
        self._figures.textContent = figures

    def _on_copy(self, _: Event) -> None:
        if js.navigator.clipboard:
            js.navigator.clipboard.writeText(self.text)
        else:  # Plain http on a local network has no clipboard API; the old way still works there.
            area = element("textarea", "hidden")
            area.value = self.text
            document.body.append(area)
            area.select()
            document.execCommand("copy")
            area.remove()
        self._copy.textContent = "Copied"

        def back(*_: object) -> None:
            self._copy.textContent = "Copy"

        js.setTimeout(create_proxy(back), COPIED_MS)
