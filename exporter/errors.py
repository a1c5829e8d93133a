"""The one exception whose message is a sentence for the person who typed the command."""

from __future__ import annotations


class ExportError(Exception):
    """An export that cannot go on: what happened, to which file, what to do next."""
