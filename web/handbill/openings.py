"""Openings: beginnings that many conversations share (the system prompt), whose KV cache is kept between visits.

An opening is found again by its tokens alone: its name says how many and hashes them (after the adapter that computed
it), and the store holds those of one exact model and kernel. So a changed template, system prompt, adapter or model
finds nothing, and what is found is what prefill would have computed.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Sequence
from typing import Protocol

LEAST = 16
"""Tokens below which an opening is not worth a file: they are read in a tenth of a second."""


class OpeningStore(Protocol):
    """Where openings lie: copies of a session's KV cache by name."""

    @property
    def names(self) -> Collection[str]:
        """Names of all that is kept."""

    async def save(self, name: str, length: int) -> None:
        """Keep the first ``length`` tokens of the session's KV cache. Not being able to is no error."""

    async def restore(self, name: str, ids: Sequence[int]) -> bool:
        """Make what ``name`` holds the session's KV cache (of ``ids``); False, and it is as before, if it cannot."""


class Openings:
    """Keeps and recalls openings of one session through ``store``."""

    adapter = ""
    """Which adapter the session computes with; an opening is of one."""

    def __init__(self, store: OpeningStore) -> None:
        self._store = store

    async def recall(self, ids: Sequence[int], least: int) -> int:
        """Restore the longest opening of ``ids`` that has more than ``least`` tokens; its length, or 0."""
        lengths = {length for name in self._store.names if (length := _length(name)) is not None}
        for length in sorted(lengths, reverse=True):
            opening = ids[:length]
            name = self._name(opening)
            if least < length <= len(ids) and name in self._store.names and await self._store.restore(name, opening):
                return length
        return 0

    def lacks(self, ids: Sequence[int]) -> bool:
        """Whether ``ids`` are worth keeping and not kept yet."""
        return len(ids) >= LEAST and self._name(ids) not in self._store.names

    async def keep(self, ids: Sequence[int]) -> None:
        """Keep ``ids``, which are the first tokens in the session's KV cache, if that is worth it and not done yet."""
        if self.lacks(ids):
            await self._store.save(self._name(ids), len(ids))

    def _name(self, ids: Sequence[int]) -> str:
        digest = hashlib.sha256(self.adapter.encode() + array("i", ids).tobytes())
        return f"{len(ids)}-{digest.hexdigest()[:32]}"


def _length(name: str) -> int | None:
    """The tokens of the opening called ``name``; None for a file of somebody else."""
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() else None
