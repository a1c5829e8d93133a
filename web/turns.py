"""The turns of a conversation on the page: what the visitor wrote and what the model answers (MicroPython).

The page may run for weeks and MicroPython never frees a proxy, so there is a fixed number of them: one listener for all
buttons, one timer for all redraws.
"""

import json

import js
from js import Event
from pyscript import document
from pyscript.ffi import create_proxy
from pyscript.js_modules import markdown

import words
from dom import by_id, details, element, label, on

RENDER_EVERY_MS = 60
COPIED_MS = 1600
SPEAK_EVERY_MS = 2000
"""A screen reader is given no more often than this: what it has not read when more comes piles up behind the writer."""


class Answer:
    """What the model writes, as it grows. A base model continues ``lead``, which is shown in front."""

    def __init__(self, index: int, lead: str) -> None:
        self.text = ""
        self._lead = lead
        self._whole = ""  # Sentences that no screen reader was given yet, and what of the next one is there.
        self._begun = ""
        self._spoke = -SPEAK_EVERY_MS  # When it was last given some.
        self.root = element("article", "turn answer busy")
        self.root.dataset.index = str(index)
        self.root.setAttribute("aria-busy", "true")
        self._body = element("div", "body")
        self._body.dir = "auto"
        self._foot = element("footer", "foot")
        self._figures = element("p", "figures")
        self._copy = _button("copy")
        self._again = _button("again")
        self._foot.append(self._figures, self._copy, self._again)
        self.root.append(_heading("turns.answer"), self._body, self._foot)
        if lead:
            self.render()

    def say(self, text: str) -> None:
        """Show ``text`` in the figures' place, such as what is being waited for."""
        self._figures.textContent = text

    def render(self) -> None:
        """Draw what has been written so far."""
        markdown.show(self._body, self._lead + self.text, words.say("turns.picture"))

    def add(self, piece: str) -> None:
        """Append ``piece``. What came before is not looked at again: an answer may be long, and its pieces many."""
        self.text += piece
        last = self._begun[-1:]
        end = words.sentences(last + piece) - len(last)
        if end > 0:
            self._whole += self._begun + piece[:end]
            self._begun = piece[end:]
        else:
            self._begun += piece

    def unspoken(self, final: bool) -> str:
        """Sentences that no screen reader has been given yet, at a humane pace; at the end, whatever is left."""
        now = js.performance.now()
        if final:
            self._whole, self._begun = self._whole + self._begun, ""
        elif now - self._spoke < SPEAK_EVERY_MS:
            return ""
        fresh, self._whole = self._whole, ""
        if fresh:
            self._spoke = now
        return fresh.strip()

    def finish(self, done: dict) -> None:  # type: ignore[type-arg]
        """The end: figures and buttons. The token ids stay on the element, for tests and the curious."""
        self._close(words.figures(done))
        self.root.dataset.ids = json.dumps(done["ids"])
        self.root.dataset.reason = done["reason"]
        self.root.dataset.reused = str(done["reused_tokens"])
        self._again.hidden = False

    def fail(self, sentence: str, detail: str = "") -> None:
        """The answer will not come, or not go on."""
        self._close("")
        self.root.insertBefore(element("p", "fault", sentence), self._foot)
        if detail:
            self.root.insertBefore(details(detail), self._foot)
        self._again.hidden = True

    def retire(self) -> None:
        """A later turn follows: only the last answer can be written again."""
        self._again.hidden = True

    def _close(self, figures: str) -> None:
        self.render()
        self.root.classList.remove("busy")
        self.root.removeAttribute("aria-busy")
        self._figures.textContent = figures
        self._copy.hidden = not self.text


class Turns:
    """The conversation on the page. ``again()`` is called when the visitor wants the last answer written anew."""

    def __init__(self, again: "object") -> None:
        self._again = again
        self._answers: list[Answer] = []
        self._root = by_id("turns")
        self._drawing: Answer | None = None
        self._drawn: object = None
        self._draw = create_proxy(self._on_draw)
        self._uncopy = create_proxy(self._on_uncopy)
        self._copying: tuple[object, str] | None = None  # The button and the text of a copy that is not done yet.
        self._copied, self._refused = create_proxy(self._on_copied), create_proxy(self._on_refused)
        on(self._root, "click", self._on_click)

    @property
    def last(self) -> "Answer | None":
        """The latest answer, being written or whole."""
        return self._answers[-1] if self._answers else None

    def ask(self, text: str) -> None:
        """Show what the visitor wrote."""
        question = element("article", "turn question")
        said = element("p", "", markdown.legible(text))
        said.dir = "auto"
        question.append(_heading("turns.you"), said)
        self._root.append(question)

    def begin(self, lead: str = "") -> Answer:
        """Make room for the next answer."""
        if self.last:
            self.last.retire()
        self._answers.append(Answer(len(self._answers), lead))
        self._root.append(self._answers[-1].root)
        return self._answers[-1]

    def add(self, piece: str, drawn: "object") -> None:
        """Append ``piece`` to the latest answer; it is drawn a few times a second, then ``drawn()`` is called."""
        answer = self._answers[-1]
        answer.add(piece)
        if self._drawing is None:
            js.setTimeout(self._draw, RENDER_EVERY_MS)
        self._drawing, self._drawn = answer, drawn

    def take_back(self) -> None:
        """Remove the latest answer, so that it can be written again."""
        self._answers.pop().root.remove()

    def unask(self) -> None:
        """Remove the latest answer and its question."""
        self.take_back()
        if self._root.lastElementChild:
            self._root.lastElementChild.remove()

    def clear(self) -> None:
        """Remove everything."""
        self._answers = []
        self._drawing = self._copying = None
        self._root.replaceChildren()

    def _on_draw(self, *_: object) -> None:
        answer, self._drawing = self._drawing, None
        # At its end it was drawn whole, and who reads it is left alone.
        if answer and answer.root.classList.contains("busy"):
            answer.render()
            self._drawn()  # type: ignore[operator]

    def _on_click(self, event: Event) -> None:
        button = event.target.closest("button")
        if not button:
            return
        if button.dataset.act == "again":
            self._again()  # type: ignore[operator]
            return
        self._copying = button, self._answers[int(button.closest(".answer").dataset.index)].text
        if js.navigator.clipboard:
            js.navigator.clipboard.writeText(self._copying[1]).then(self._copied, self._refused)
        else:
            self._on_refused()  # Plain http on a local network has no clipboard API.

    def _on_copied(self, *_: object) -> None:
        self._tell("turns.copied")

    def _on_refused(self, *_: object) -> None:
        if self._copying:
            self._tell("turns.copied" if _copy_selected(self._copying[1]) else "turns.not_copied")

    def _tell(self, row: str) -> None:
        """Let the button that was pressed say for a while how the copy went."""
        if self._copying:
            label(self._copying[0], row)
            self._copying = None
            js.setTimeout(self._uncopy, COPIED_MS)

    def _on_uncopy(self, *_: object) -> None:
        for button in self._root.querySelectorAll("[data-act=copy]"):
            label(button, "turns.copy")


def _heading(row: str) -> "js.Element":
    """A heading that only a screen reader meets."""
    heading = element("h2", "hidden")
    label(heading, row)
    return heading


def _button(act: str) -> "js.Element":
    button = element("button", "quiet small")
    button.type = "button"
    button.hidden = True
    button.dataset.act = button.dataset.control = act
    label(button, f"turns.{act}")
    button.dataset.wordLabel = f"turns.{act}_label"
    button.ariaLabel = words.say(f"turns.{act}_label")
    return button


def empty_clipboard() -> None:
    """Leave nothing there of what was copied."""
    if js.navigator.clipboard:
        js.navigator.clipboard.writeText("")
    else:
        _copy_selected(" ")  # An empty field has nothing to select.


def _copy_selected(text: str) -> bool:
    """Copy ``text`` the old way, which needs no permission; whether that worked."""
    area = element("textarea", "hidden")
    area.value = text
    document.body.append(area)
    area.select()
    done = document.execCommand("copy")
    area.remove()
    return bool(done)
