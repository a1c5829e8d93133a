"""How a model predicts a text, and how alike its predictions are to those of the source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def log_probabilities(logits: Floats) -> Floats:
    """log softmax of one position, float32 [vocabulary], summed in float64: torch's own is off by 5e-5 for 262,144.

    One position at a time, here and below: a large vocabulary then stays in a core's cache, at half the time.
    """
    shifted = logits - logits.max()
    result: Floats = shifted - np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))
    return result


class Predictions:
    """The source's predictions at every position of a text, in files: a vocabulary of 256,000 makes them large.

    ``logs`` float16 [tokens, vocabulary] are log-probabilities: float16 errs least near 0, which is where the
    probability is. ``best`` int64 [tokens] is the likeliest token, which float16 would leave to chance at a tie.
    """

    def __init__(self, logs: npt.NDArray[np.float16], best: npt.NDArray[np.int64]) -> None:
        self.logs, self.best = logs, best

    @classmethod
    def create(cls, folder: Path, tokens: int, vocabulary: int) -> Predictions:
        """New and empty, to be filled by ``put``."""
        logs: Any = np.lib.format.open_memmap(folder / "logs.npy", "w+", np.dtype(np.float16), (tokens, vocabulary))
        best: Any = np.lib.format.open_memmap(folder / "best.npy", "w+", np.dtype(np.int64), (tokens,))
        return cls(logs, best)

    @classmethod
    def open(cls, folder: Path) -> Predictions:
        """What ``create`` made in ``folder``."""
        return cls(np.load(folder / "logs.npy", mmap_mode="r"), np.load(folder / "best.npy", mmap_mode="r"))

    def put(self, start: int, logits: Floats) -> None:
        """Positions from ``start`` on are predicted by ``logits`` [n, vocabulary]."""
        for position, row in enumerate(logits, start):
            self.logs[position] = log_probabilities(row)
            self.best[position] = row.argmax()


@dataclass
class Tally:
    """Sums over the positions of a text, which come in order. Surprise and divergence are in nats."""

    source: Predictions
    ids: Sequence[int]
    positions: int = 0
    surprise: float = 0.0
    divergence: float = 0.0
    agreed: int = 0

    def add(self, logits: Floats) -> None:
        """Count the next positions, predicted by ``logits`` [n, vocabulary]."""
        for position, row in enumerate(logits, self.positions):
            found, wanted = log_probabilities(row), self.source.logs[position].astype(np.float32)
            if position + 1 < len(self.ids):  # the text's last token is followed by none
                self.surprise -= float(found[self.ids[position + 1]])
            self.divergence += float((np.exp(wanted) * (wanted - found)).sum(dtype=np.float64))
            self.agreed += int(self.source.best[position] == row.argmax())
        self.positions += len(logits)

    def measured(self) -> Measured:
        """The means. Raises ZeroDivisionError before the second position."""
        return Measured(
            perplexity=math.exp(self.surprise / (self.positions - 1)),
            divergence=max(0.0, self.divergence / self.positions),  # rounding may leave a hair less than nothing
            agreement=self.agreed / self.positions,
        )


@dataclass(frozen=True)
class Measured:
    """Of a model on a text: its perplexity, the mean Kullback-Leibler divergence of its predictions from the source's
    in nats a token, and the share of positions where both find the same token likeliest."""

    perplexity: float
    divergence: float
    agreement: float
