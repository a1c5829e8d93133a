"""A licence that was saved as a web page, as plain text: without the page's scripts, styles and outside addresses."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class _Text(HTMLParser):
    """Collects the text of the page's article from its title on, with a blank line between block elements."""

    _BLOCKS = frozenset({"p", "h1", "h2", "h3", "li", "aside", "div"})
    _SILENT = frozenset({"style", "script", "button"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.inside = self.silent = 0
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.inside += tag == "article"
        if tag == "h1":
            self.parts.clear()  # navigation
        self.silent += tag in self._SILENT
        if tag in self._BLOCKS:
            self.parts.append("\n\n- " if tag == "li" else "\n\n")
        if tag == "a":
            self.links.append(dict(attributes).get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        self.inside -= tag == "article"
        self.silent -= tag in self._SILENT
        if tag == "a" and self.links and (address := self.links.pop()).startswith("http"):
            self.handle_data(f" ({address})")

    def handle_data(self, data: str) -> None:
        if self.inside and not self.silent:
            self.parts.append(re.sub(r"\s+", " ", data))


def plain_text(html: str) -> str:
    """The article of the page ``html``, paragraphs apart by blank lines and links followed by their address."""
    reader = _Text()
    reader.feed(html)
    blocks = (block.strip() for block in re.split(r"\n\n+", "".join(reader.parts)))
    return "\n\n".join(block for block in blocks if block not in ("", "-")) + "\n"
