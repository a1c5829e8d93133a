"""Text that may be shown while an answer is still being written: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from handbill.session import Tokenizer

REPLACEMENT = "\ufffd"
_WINDOW = 16
"""Tokens after which the decoded window starts anew: more cost more per token, fewer make more restarts."""
_MOST = 64
"""A window longer than this holds no character that could still become whole (UTF-8 takes four bytes)."""


class Detokenizer:
    """Token ids to text, one at a time, in time linear in their number.

    A tokenizer's ``decode`` is not a sum over tokens: a character may be spread over several, and the first word may
    lose its space. So a short window of the latest tokens is decoded each time, and the text that it has gained is
    passed on, but for a tail of U+FFFD, which may be the beginning of a character.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._whole = 0  # Tokens of the window up to which characters were last whole.
        self._text = ""  # What the window decodes to.
        self._shown = 0  # Characters of it that were passed on.

    def push(self, token: int) -> str:
        """The text that ``token`` completes, often empty."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if text == self._text and not text.endswith(REPLACEMENT):
            # A special token has no text and would only make the window longer. At the very start it may be a space
            # that the decoder strips there, so it stays for a while.
            if text or len(self._window) > _WINDOW:
                self._window.pop(-1 if text else 0)
            return ""
        self._text = text
        whole = text.rstrip(REPLACEMENT)
        fresh = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if len(whole) == len(text):
            if len(self._window) > _WINDOW:
                self._restart(self._whole)
            self._whole = len(self._window)
        elif len(self._window) > _MOST:
            fresh += text[self._shown :]
            self._restart(len(self._window) - 4)
            self._whole = 0
        return fresh

    def finish(self) -> str:
        """What is left at the end of the answer: bytes that never became a character."""
        rest = self._text[self._shown :]
        self._shown = len(self._text)
        return rest

    def _restart(self, first: int) -> None:
        """Keep the window from token ``first`` on: context enough for the next token's space."""
        text = self._tokenizer.decode(self._window[first:])
        if text:
            del self._window[:first]
            self._text, self._shown = text, len(text)


class StopStrings:
    """Cuts a text that arrives in pieces before the first of some strings, wherever the pieces end.

    The string that is complete first wins (of two complete at once, the one that began first), so that the cut does
    not depend on how the text was split. ``found`` is that string, or None.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that may be shown now; what could be the beginning of a stop string is held back."""
        if self.found is not None:
            return ""
        text = self._held + text
        cuts = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if cuts:
            _, at, self.found = min(cuts)
            self._held = ""
            return text[:at]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with, short of the whole of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
