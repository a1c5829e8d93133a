"""What a generator says while it answers: progress of the prompt, pieces of the answer, and the end.

The fields are those of the messages in ARCHITECTURE.md's table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Prefill:
    """Progress of reading the prompt: ``done`` of the ``total`` tokens that the KV cache did not hold.

    ``rate`` is in tokens per second, ``seconds_left`` an estimate; both are None until the first chunk is through.
    """

    kind: ClassVar[str] = "progress"
    done: int
    total: int
    rate: float | None = None
    seconds_left: float | None = None
    stage: str = "prefill"
    unit: str = "tokens"

    @classmethod
    def after(cls, done: int, total: int, seconds: float) -> Prefill:
        """Progress after ``seconds`` of prefill."""
        rate = done / seconds if seconds > 0 else None
        return cls(done, total, rate, (total - done) / rate if rate else None)


@dataclass(frozen=True)
class Piece:
    """The next piece of the answer: whole characters, to be appended."""

    kind: ClassVar[str] = "piece"
    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer, always the last event.

    ``reason``: eos (the model ended it), stop (a stop string), length (``max_tokens``), context (the KV cache is full)
    or stopped (the visitor). ``prompt_tokens`` is the prompt's length, ``reused_tokens`` how many of them the KV cache
    already held. ``ids`` are the answer's tokens without the one that ended it, ``tokens`` their number.
    ``first_token_seconds`` runs from the call to the first token, ``tokens_per_second`` is the speed after it; each is
    0 where there was no such token.
    """

    kind: ClassVar[str] = "done"
    reason: str
    prompt_tokens: int
    reused_tokens: int
    tokens: int
    first_token_seconds: float
    tokens_per_second: float
    ids: list[int]


Event = Prefill | Piece | Done
