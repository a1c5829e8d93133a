"""A page left alone with strangers: reads kiosk.toml and dresses the assembled page by it.

``docs/kiosk.md`` explains every key; ``docs/kiosk.toml`` is an example with all of them. The page reads its part as
JSON from a script element in index.html, so that the attract screen is there with the first paint and the page needs
no further file.
"""

from __future__ import annotations

import dataclasses
import html
import json
import string
import tomllib
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

CONTROLS = ("new-chat", "copy", "again", "settings")
"""What may be allowed besides writing, sending and stopping."""

THEMES = ("auto", "light", "dark")

LIMITS = {
    "idle_seconds": (10, 3600),
    "countdown_seconds": (5, 120),
    "answer_seconds": (5, 600),
    "answer_tokens": (8, 4096),
    "message_characters": (20, 10_000),
}
"""Least and most of each number. An answer or a wait outside of them is a slip of the pen."""

LENGTHS = {"title": 60, "greeting": 300, "system": 4000}
"""Most characters of each text; title and greeting have to fit the smallest screen."""

QUESTIONS, QUESTION_LENGTH = 6, 120

MARK = "<!-- attract -->"
"""Where index.html takes the attract screen."""


class KioskError(ValueError):
    """A kiosk.toml that cannot be used. The message is a sentence for the reader."""


@dataclass(frozen=True)
class Kiosk:
    """The keys of kiosk.toml. ``language`` "" is the browser's, ``system`` "" none; seconds are whole seconds."""

    title: str
    greeting: str
    questions: list[str] = field(default_factory=list)
    system: str = ""
    language: str = ""
    theme: str = "auto"
    controls: list[str] = field(default_factory=lambda: ["new-chat"])
    idle_seconds: int = 60
    countdown_seconds: int = 15
    answer_seconds: int = 60
    answer_tokens: int = 256
    message_characters: int = 500

    @classmethod
    def read(cls, path: Path, languages: set[str]) -> Kiosk:
        """The kiosk of ``path``; ``languages`` are those that the page speaks.

        Raises KioskError for a file that is not there or not TOML, an unknown or missing key, a value of the wrong
        type, an absurd one, and a control, theme or language that does not exist.
        """
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise KioskError(f"{path} cannot be read ({error.strerror}).") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise KioskError(f"{path} is not TOML: {error}.") from None
        try:
            return cls(**_typed(given))._checked(languages)
        except KioskError as error:
            raise KioskError(f"{path}: {error}") from None

    def _checked(self, languages: set[str]) -> Kiosk:
        for name, (least, most) in LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise KioskError(f"{name} is {getattr(self, name)}; it may be {least} to {most}.")
        for name, most in LENGTHS.items():
            _fits(name, getattr(self, name), most, empty=name == "system")
        if len(self.questions) > QUESTIONS:
            raise KioskError(f"there are {len(self.questions)} questions; the screen has room for {QUESTIONS}.")
        for question in self.questions:
            _fits("questions", question, QUESTION_LENGTH)
        _one_of("theme", self.theme, THEMES)
        _one_of("language", self.language, ["", *sorted(languages)])
        for control in self.controls:
            _one_of("controls", control, CONTROLS)
        return self


def dress(page: str, attract: str, kiosk: Kiosk) -> str:
    """index.html (``page``) as a kiosk: its texts in the template ``attract``, its settings as JSON beside it.

    Raises KioskError if the page has no place for them.
    """
    if page.count(MARK) != 1 or page.count("<html ") != 1:
        raise KioskError(f"web/index.html has no single {MARK} and <html>, where the kiosk's attract screen goes.")
    slips = "".join(
        f'<button type="button" dir="auto">{html.escape(question)}</button>' for question in kiosk.questions
    )
    screen = string.Template(attract).substitute(
        title=html.escape(kiosk.title), greeting=html.escape(kiosk.greeting), questions=slips
    )
    settings = {
        name: getattr(kiosk, name)
        for name in ("system", "idle_seconds", "countdown_seconds", "answer_seconds", "answer_tokens")
    } | {"message_characters": kiosk.message_characters}
    # "<" would end the element early, whatever follows; JSON may write it so.
    data = json.dumps(settings, ensure_ascii=False).replace("<", "\\u003c")
    root = {
        "class": "kiosk",
        "data-controls": " ".join(kiosk.controls),
        "data-language": kiosk.language,
        "data-theme": kiosk.theme,
    }
    attributes = "".join(f' {name}="{html.escape(value)}"' for name, value in root.items() if value)
    page = page.replace("<html ", f"<html{attributes} ", 1)
    page = page.replace(MARK, f'{screen}<script type="application/json" id="kiosk">{data}</script>')
    return page.replace("<title>Handbill</title>", f"<title>{html.escape(kiosk.title)}</title>")


def command_line(address: str) -> str:
    """The command that opens ``address`` as a kiosk in Chrome or Chromium; docs/kiosk.md says what each option does."""
    options = [
        "--kiosk",
        "--user-data-dir=/var/lib/handbill/chromium",
        "--no-first-run",
        "--noerrdialogs",
        "--hide-crash-restore-bubble",
        "--disable-pinch",
        "--overscroll-history-navigation=0",
        "--disable-features=Translate,AutofillServerCommunication",
        "--disable-background-networking",
        "--disable-sync",
        "'--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'",  # systemd wants all of a word in quotes.
    ]
    return " \\\n  ".join(["chromium", *options, address])


def _typed(given: dict[str, Any]) -> dict[str, Any]:
    """``given`` with every key known and of its type."""
    hints = get_type_hints(Kiosk)
    unknown = sorted(set(given) - set(hints))
    if unknown:
        raise KioskError(f"there is no key {unknown[0]!r}; those are {', '.join(hints)}.")
    for entry in dataclasses.fields(Kiosk):
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and entry.name not in given:
            raise KioskError(f"the key {entry.name!r} is missing.")
    for name, value in given.items():
        texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not (texts if hints[name] == list[str] else type(value) is hints[name]):
            wanted = (
                "a list of texts" if hints[name] == list[str] else {str: "a text", int: "a whole number"}[hints[name]]
            )
            raise KioskError(f"{name} should be {wanted}, not {value!r}.")
    return given


def _fits(name: str, text: str, most: int, *, empty: bool = False) -> None:
    if not text.strip() and not empty:
        raise KioskError(f"{name} has an empty text.")
    if len(text) > most:
        raise KioskError(f"{name} has a text of {len(text)} characters; {most} fit.")
    if any(unicodedata.category(character) == "Cc" and character != "\n" for character in text):
        raise KioskError(f"{name} has a control character in it: {text!r}.")


def _one_of(name: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise KioskError(f"{name} has {value!r}; known are {', '.join(repr(item) for item in allowed)}.")
