"""Prompt lookup: guess the next tokens from what the conversation already says, so that one step checks several.

Answers that repeat the prompt (quoting, correcting, summarising) repeat its tokens. The tokens that followed the latest
earlier occurrence of the last few are drafted; the session computes them in one step of several positions, and the
generate loop keeps what the model would have chosen anyway (prompt lookup decoding, Saxena 2023; checking by one wider
step is speculative decoding, arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Sequence

_NGRAMS = (3, 2)
"""Lengths of the ending that is looked up, longest first: one token alone is a guess too often wrong."""
_SHARE = 0.02
"""Of the time of plain steps that wrong guesses may cost in the long run."""
_RISK = 4
"""Plain steps that earlier gains may pay for: past that they are gains for good."""
_MEMORY = 0.8
"""How much a running mean keeps at each new figure."""


class PromptLookup:
    """A Drafter (see handbill.generate) of up to ``longest`` tokens that measures whether it pays, and pauses if not.

    A step of several positions costs more than a plain one; how much depends on the device, so it is learnt. Right
    guesses earn what they saved, wrong ones pay; in debt nothing is drafted, until the plain steps have earned it off
    with a fiftieth of their time.
    """

    def __init__(self, longest: int = 4) -> None:
        self._longest = longest
        self._ids: Sequence[int] = ()
        self._indexed = 0
        self._after: dict[tuple[int, ...], int] = {}
        self._plain_seconds: float | None = None
        self._balance = 0.0

    def draft(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """Up to ``most`` guesses of what follows ``ids``. ``ids`` may grow between calls; another list starts anew."""
        if self._plain_seconds is None or self._balance < 0:
            return ()
        self._index(ids)
        for length in _NGRAMS:
            start = self._after.get(tuple(ids[-length:])) if len(ids) >= length else None
            if start is not None:
                return ids[start : start + min(most, self._longest)]
        return ()

    def learn(self, drafted: int, accepted: int, seconds: float) -> None:
        """What a step took: ``accepted`` of ``drafted`` guesses were right, so it gave one token more than that."""
        if drafted == 0:
            known = self._plain_seconds
            self._plain_seconds = seconds if known is None else _MEMORY * known + (1 - _MEMORY) * seconds
            if self._balance < 0:
                self._balance += _SHARE * seconds
        elif self._plain_seconds is not None:
            saved = (1 + accepted) * self._plain_seconds - seconds
            self._balance = min(self._balance + saved, _RISK * self._plain_seconds)

    def _index(self, ids: Sequence[int]) -> None:
        """Note where each n-gram of ``ids`` was last seen, but for the one at the very end, which is looked up."""
        if ids is not self._ids or len(ids) < self._indexed:
            self._ids, self._indexed = ids, 0
            self._after.clear()
        for end in range(self._indexed + 1, len(ids)):
            for length in _NGRAMS:
                if end >= length:
                    self._after[tuple(ids[end - length : end])] = end
        self._indexed = max(self._indexed, len(ids) - 1)
