"""What a value of the graph is while its plan is derived."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.plan_tensors import Stored


@dataclass(frozen=True)
class Columns:
    """``width`` columns of a buffer from ``start`` on; ``head`` is the size of the last axis where heads are split."""

    buffer: int
    start: int
    width: int
    head: int = 0

    @property
    def operand(self) -> list[int]:
        return [self.buffer, self.start]


@dataclass(frozen=True)
class Activated:
    """An activation that has not been computed yet, because it may go into the operation that reads it."""

    kind: str
    of: Columns


@dataclass(frozen=True)
class LowRank:
    """Half of an adapter's branch: ``of`` times the A of ``matrix``; with ``is_wide`` times its B too."""

    of: Columns
    matrix: str
    is_wide: bool = False


@dataclass(frozen=True)
class Length:
    """The total length of a step; with a ``switch``, whether it is more than that many tokens."""

    switch: int = 0


@dataclass(frozen=True)
class Tables:
    """A rotary table [context, dim / 2]; with a ``switch`` two [2, context, dim / 2], the second for longer steps."""

    stored: Stored
    switch: int = 0
