"""The Storage section of the settings: what this browser keeps of the site, how large it is, and away with it
(MicroPython).
"""

import js
from js import Event

import words
from dom import by_id, element, label, on


class Storage:
    """The list of what is kept. ``post(kind, **fields)`` puts a message to the store on the channel."""

    def __init__(self, post: "object") -> None:
        self._post = post
        self._kept: dict = {}  # type: ignore[type-arg]  # The last ``kept`` message.
        self._asked = ""  # The item that one more press deletes.
        self._items = by_id("storage-items")
        on(by_id("open-settings"), "click", self._on_open)
        on(self._items, "click", self._on_click)
        on(self._items, "focusout", lambda _: self._ask(""))

    def show(self, kept: dict) -> None:  # type: ignore[type-arg]
        """Draw what a ``kept`` message says."""
        self._kept = kept
        self.redraw()
        if kept["refused"]:
            label(by_id("storage-said"), f"storage.state_{kept['refused']}")

    def redraw(self) -> None:
        """Say it in the language of now."""
        kept = self._kept
        if not kept:
            return
        by_id("storage").hidden = False
        row = "storage.persistent" if kept["persistent"] else "storage.clearable"
        parts = [words.say(row)]
        if kept["quota"]:
            used, quota = words.size(kept["used"]), words.size(kept["quota"])
            parts.insert(0, words.say("storage.used", used=used, quota=quota))
        by_id("storage-sum").textContent = " ".join(parts)
        within = self._items.contains(js.document.activeElement)
        self._items.replaceChildren()
        for item in kept["items"]:
            self._items.append(self._line(item))
        if within:  # The button that was pressed is gone.
            (self._items.querySelector("button") or by_id("defaults")).focus()

    def _line(self, item: dict) -> "js.Element":  # type: ignore[type-arg]
        line, about = element("li", ""), element("p", "")
        name = item["title"] or words.say(f"storage.item_{item['item']}")
        about.append(element("span", "", name), element("small", "", self._about(item)))
        button = element("button", "quiet", words.say("storage.delete"))
        button.type = "button"
        button.dataset.item = item["item"]
        button.setAttribute("aria-label", words.say("storage.delete_label", name=name))
        button.disabled = item["state"] in ("coming", "elsewhere")
        line.append(about, button)
        return line

    def _about(self, item: dict) -> str:  # type: ignore[type-arg]
        size = words.size(item["bytes"])
        return f"{size} · {words.say('storage.state_' + item['state'])}" if item["state"] else size

    def _on_open(self, _: Event) -> None:
        by_id("storage-said").textContent = ""
        self._post("survey")  # type: ignore[operator]

    def _on_click(self, event: Event) -> None:
        button = event.target.closest("button")
        if not button:
            return
        item = button.dataset.item
        if self._asked != item:
            self._ask(item)
            return
        states = {one["item"]: one["state"] for one in self._kept["items"]}
        row = {"site": "storage.deleted_site"}.get(item, "storage.deleted_here" if states[item] else "storage.deleted")
        label(by_id("storage-said"), row)
        self._post("discard", item=item)  # type: ignore[operator]

    def _ask(self, item: str) -> None:
        """Let the button of ``item`` ask whether it is meant, and no other."""
        self._asked = item
        for button in self._items.querySelectorAll("button"):
            meant = button.dataset.item == item
            button.textContent = words.say("storage.really" if meant else "storage.delete")
            name = button.closest("li").querySelector("span").textContent
            row = "storage.really_label" if meant else "storage.delete_label"
            button.setAttribute("aria-label", words.say(row, name=name))
