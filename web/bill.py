"""The first screen: what this is, what it costs to load, and examples to begin with (MicroPython)."""

from js import Event

import words
from dom import by_id, label, on, write


class Bill:
    """The sheet before the first message. ``take(question)`` is called with the example that was chosen."""

    def __init__(self, take: "object") -> None:
        self._take = take
        self._model = self._page = 0  # Bytes to be loaded.
        self._runtime = ""
        self._row = "bill.load_once"
        on(by_id("examples"), "click", self._on_example)

    def dress(self, title: str, greeting: str) -> None:
        """A kiosk's own words in the place of ours."""
        write(by_id("headline"), title)
        write(by_id("bill").querySelector(".lead"), greeting)
        by_id("examples").replaceChildren()
        for question in by_id("attract-questions").children:
            by_id("examples").append(question.cloneNode(True))

    def show(self, visible: bool) -> None:
        """Show or hide the sheet."""
        by_id("bill").hidden = not visible

    def name(self, title: str) -> None:
        """The model's title."""
        by_id("fact-model").textContent = by_id("model-name").textContent = title

    def cost(self, model: int, page: int) -> None:
        """How many bytes of the model are to be loaded, and at a first visit of page and runtime."""
        self._model, self._page = model, page
        self.redraw()

    def because(self, why: str) -> None:
        """Why it is this model, of several: "asked", "best" or "smallest"; "" where there is no other."""
        by_id("why").hidden = not why
        if why:
            label(by_id("fact-why"), f"bill.why_{why}")

    def kept(self, where: str) -> None:
        """Where the bytes lie, as `stored` says: loaded once (opfs), at each visit (nowhere), or inside the page."""
        self._row = {"nowhere": "bill.load_each", "inside": "bill.load_none"}.get(where, "bill.load_once")
        self.redraw()

    def runs_on(self, runtime: str) -> None:
        """Where the model runs."""
        self._runtime = runtime
        self.redraw()

    def redraw(self) -> None:
        """Say the figures in the language of now."""
        if self._runtime:
            write(by_id("fact-runtime"), words.runtime(self._runtime))
        if self._model:
            count = self._model + (self._page if self._row == "bill.load_once" else 0)
            by_id("fact-load").textContent = words.say(self._row, size=words.size(count))

    def _on_example(self, event: Event) -> None:
        if event.target.tagName == "BUTTON":
            self._take(event.target.textContent)  # type: ignore[operator]
