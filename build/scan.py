"""What a source file refers to: the strings of JavaScript and Python, the addresses of HTML and CSS.

Comments do not count. What a string is put together from at run time stands as ``*``, so that
``models/${slug}/manifest.json`` is read as ``models/*/manifest.json``.
"""

from __future__ import annotations

import ast
import html.parser
import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLLOWED = {("a", "href"), ("area", "href")}
"""Attributes whose address a reader may follow, but which the page does not fetch by itself."""

ADDRESS_ATTRIBUTES = {"src", "href", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href"}

_CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_CSS_ADDRESS = re.compile(r"""url\(\s*['"]?([^'")]+)['"]?\s*\)|@import\s+['"]([^'"]+)['"]""")
_REGEX_MAY_FOLLOW = re.compile(r"(?:^|[(,=:\[!&|?{};+\-*%<>~^]|\b(?:return|typeof|case|in|of|void|delete))\s*$")


class ScanError(Exception):
    """A file that cannot be read as what its name says. The message is a sentence."""


@dataclass(frozen=True)
class Mention:
    """A string in a file. ``must_resolve``: it is an address for certain, not only a string that may be one."""

    line: int
    text: str
    must_resolve: bool = False


def mentions(path: Path) -> list[Mention]:
    """The strings and addresses in ``path``, by its suffix; [] for a kind of file that refers to nothing.

    Raises ScanError for a file that does not parse.
    """
    readers = {".py": _python, ".js": _javascript, ".mjs": _javascript, ".css": _css, ".html": _html, ".svg": _html}
    reader = readers.get(path.suffix)
    if reader is None:
        return []
    try:
        return reader(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise ScanError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from None


def _python(text: str) -> list[Mention]:
    """String constants and f-strings, docstrings and other bare strings left out."""
    tree = ast.parse(text)
    skipped: set[ast.AST] = set()
    found = []
    for node in ast.walk(tree):  # parents come before their children
        if node in skipped:
            skipped.update(ast.iter_child_nodes(node))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values]
            found.append(Mention(node.lineno, "".join(parts)))
            skipped.update(part for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(Mention(node.lineno, node.value))
    return found


def _css(text: str) -> list[Mention]:
    """Addresses in url() and @import."""
    bare = _CSS_COMMENT.sub(lambda match: "\n" * match.group().count("\n"), text)
    return [
        Mention(bare.count("\n", 0, match.start()) + 1, match.group(1) or match.group(2), must_resolve=True)
        for match in _CSS_ADDRESS.finditer(bare)
    ]


class _Reader(html.parser.HTMLParser):
    """Collects addresses of HTML or SVG, those of inline styles, and the strings of PyScript's config attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Mention] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        line = self.getpos()[0]
        self._inside = tag
        for name, value in attrs:
            if not value:
                continue
            if name == "config":
                config = json.loads(value) if value.lstrip().startswith("{") else value
                self.found += [Mention(line, text, must_resolve=True) for text in _config_addresses(config)]
            elif name == "style":
                self.found += [Mention(line, item.text, must_resolve=True) for item in _css(value)]
            elif name in ADDRESS_ATTRIBUTES and (tag, name) not in FOLLOWED:
                pieces = [piece.split()[0] for piece in value.split(",")] if name == "srcset" else [value]
                self.found += [Mention(line, piece, must_resolve=True) for piece in pieces]

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        line = self.getpos()[0] - 1
        if self._inside == "style":
            self.found += [Mention(line + item.line, item.text, True) for item in _css(data)]
        elif self._inside == "script":
            self.found += [Mention(line + item.line, item.text) for item in _javascript(data)]


def _html(text: str) -> list[Mention]:
    """Addresses of a document, in its order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.found


def _config_addresses(config: object) -> list[str]:
    """Addresses in a PyScript config: the interpreter, the keys of files, and the keys of each list of js_modules.

    Raises ValueError if no interpreter is named: PyScript would then fetch one from its CDN.
    """
    if not isinstance(config, dict):
        return [str(config)]
    if "interpreter" not in config:
        raise ValueError("a PyScript config names no interpreter, so PyScript would fetch one from outside")
    addresses = [str(config["interpreter"]), *map(str, config.get("files", {}))]
    for modules in config.get("js_modules", {}).values():
        addresses += map(str, modules)
    return addresses


def _javascript(text: str) -> list[Mention]:
    """String and template literals; a template's ``${…}`` stands as ``*``, and strings inside it count as well."""
    found: list[Mention] = []
    _script(text, 0, found, inside_template=False)
    return sorted(found, key=lambda mention: mention.line)


def _script(text: str, at: int, found: list[Mention], inside_template: bool) -> int:
    """Read code from ``at`` to the end, or to the brace that closes a template's ``${``; returns where it stopped."""
    depth, begin = 0, at
    while at < len(text):
        char = text[at]
        if text.startswith("//", at):
            at = text.find("\n", at) if "\n" in text[at:] else len(text)
        elif text.startswith("/*", at):
            at = _after(text, "*/", at + 2)
        elif char in "'\"":
            end = _closing(text, at)
            found.append(Mention(text.count("\n", 0, at) + 1, text[at + 1 : end]))
            at = end + 1
        elif char == "`":
            at = _template(text, at, found)
        elif char == "/" and _REGEX_MAY_FOLLOW.search(text[max(begin, at - 40) : at]):
            at = _regex_end(text, at)
        elif inside_template and char == "}" and depth == 0:
            return at + 1
        else:
            depth += (char == "{") - (char == "}")
            at += 1
    return at


def _template(text: str, at: int, found: list[Mention]) -> int:
    """Read a template literal that opens at ``at``; returns the index after its closing backquote."""
    line, said, at = text.count("\n", 0, at) + 1, "", at + 1
    while at < len(text) and text[at] != "`":
        if text.startswith("${", at):
            said += "*"
            at = _script(text, at + 2, found, inside_template=True)
        else:
            step = 2 if text[at] == "\\" else 1
            said += text[at : at + step]
            at += step
    found.append(Mention(line, said))
    return at + 1


def _closing(text: str, at: int) -> int:
    """Index of the quote that closes the one at ``at``. Raises ValueError if the line ends first."""
    match = re.compile(rf"(?:[^{text[at]}\\\n]|\\.)*", re.DOTALL).match(text, at + 1)
    end = match.end() if match else at
    if end >= len(text) or text[end] != text[at]:
        raise ValueError(f"a string that begins in line {text.count(chr(10), 0, at) + 1} is not closed")
    return end


def _regex_end(text: str, at: int) -> int:
    """Index after the slash that closes the regular expression at ``at``; a slash in a class does not close it."""
    match = re.compile(r"/(?:[^/\\\n\[]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/").match(text, at)
    return match.end() if match else at + 1


def _after(text: str, mark: str, at: int) -> int:
    """Index after the next ``mark``, or the end."""
    found = text.find(mark, at)
    return len(text) if found < 0 else found + len(mark)
