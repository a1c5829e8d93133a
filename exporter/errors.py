"""The one exception whose message is a sentence for the person who typed the command."""

from __future__ import annotations


class ExportError(Exception):
    """An export that cannot go on: what happened, to which file, what to do next."""


def first_line(error: Exception) -> str:
    """What another library's exception says, as a part of a sentence: its first line, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
