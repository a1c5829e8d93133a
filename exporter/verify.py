"""The gate: the finished graph against eager torch with the same weights, then against the source on a text.

At accuracy_level 0 ONNX Runtime computes in float32, so a difference above 1e-4 is a wrong graph and not rounding.
Where logits are large it may be rounding all the same, torch's own as well: then both are held against float64
(``Gate``). What ships is accuracy_level 4 (activations in int8 blocks), which moves logits by far more than that; its
gate is the perplexity, recorded in the manifest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.agreement import Floats, Measured, Predictions, Tally
from exporter.convert import TOP_K
from exporter.errors import ExportError
from exporter.native import NativeSession
from handbill.manifest import Check, KVLayout

TOLERANCE = 1e-4

ROUNDING = 2
"""A graph may be so many times as far from float64 as eager torch in float32 is: both add up the same products, in
other orders. gemma-3-270m's logits reach 32 over hidden states of 32,000; there torch's float32 is 7.6e-5 from float64
and the graphs are 1.2e-4 (256 of 576 tokens). Faults are of another size: test_gate.py has some."""

GATE_TOKENS = 256
TEXT_TOKENS = 1024
LEAST_TOKENS = 64
MEASURED = 300_000_000_000
"""Products of a parameter with a token that one run over the text may take, about: 1,024 tokens of 300 M parameters."""

GATED = 160_000_000_000
"""The same for the gate, which runs each graph twice, in float32: 256 tokens of 600 M parameters."""

CHUNK = 100
ALONE = 64
"""Tokens that are decoded one by one over the KV cache, at most; a quarter of a shorter gate."""

BEYOND = 64
"""Tokens that the gate goes past a sliding window, where the text is as long."""

COMPARED = 1 << 26
"""Logits compared at once, at most: 256 tokens of a vocabulary of 262,144. Of a longer gate these are the last ones."""

ASKED = 1 << 20
"""A run asks for logits in so many steps as make this many of the vocabulary, and in its last one: tiny models always,
49,152 tokens 21 times, 262,144 four times. At accuracy_level 0 ONNX Runtime unpacks an 8-bit matrix anew for each
step, and lm_head (168 million weights in gemma-3-270m) where one asks. A step that does not is seen in those after it,
through its keys and values."""

CHECK_TOKENS = 48
"""Of the page's own check of a device: past the 32 from which ONNX Runtime's WebGPU attention takes other kernels."""

TEXT = Path(__file__).with_name("text.txt")


@dataclass(frozen=True)
class Tokens:
    """How much of TEXT is measured (perplexity), how much of its beginning goes through the gate, and after how many of
    the gate's last tokens logits are compared."""

    text: int
    gate: int
    compared: int

    @property
    def kept(self) -> list[int]:
        """Positions whose logits the stages need: those of ``device_check``, and the compared ones."""
        return sorted({self.check - 1, *range(self.gate - self.compared, self.gate)})

    @property
    def check(self) -> int:
        """Tokens of ``device_check``."""
        return min(CHECK_TOKENS, self.gate)


def tokens(parameters: int, vocabulary: int, window: int = 0, most: int = TEXT_TOKENS) -> Tokens:
    """TEXT_TOKENS and GATE_TOKENS, fewer for a large model, so that measuring it takes minutes and not hours.

    The gate goes past a sliding ``window`` of so many tokens (0: none), unless the text ends before. ``most`` is what
    there is of a text, or what the model can hold.
    """
    text = min(most, max(LEAST_TOKENS, min(TEXT_TOKENS, MEASURED // parameters)))
    gate = min(text, max(LEAST_TOKENS, min(GATE_TOKENS, GATED // parameters)))
    if window and window + BEYOND <= text:
        gate = max(gate, window + BEYOND)
    return Tokens(text, gate, min(gate, COMPARED // vocabulary))


@dataclass(frozen=True)
class Differences:
    """Largest absolute logit differences."""

    prefill: float
    chunked: float
    decode: float

    @property
    def worst(self) -> float:
        return max(self.prefill, self.chunked, self.decode)


@torch.no_grad()
def eager_logits(model: Any, ids: Sequence[int]) -> Floats:
    """Logits of eager torch at every position, float32 [tokens, vocabulary]."""
    logits: Floats = model(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()
    return logits


class Gate:
    """What every graph of an export has to pass.

    ``reference`` [n, vocabulary] is what eager torch says after the last n of the tokens ``ids``, in float32. Logits
    that differ from it by more than TOLERANCE may be wrong, or as right as float32 can be: ``exact`` is then called,
    once, for the same in float64. From there on differences are from that, and at most ROUNDING times the reference's
    own (``float32``, else 0) are allowed.
    """

    def __init__(self, reference: Floats, ids: Sequence[int], exact: Callable[[], Floats]) -> None:
        self.reference, self.ids = reference, ids
        self.float32 = 0.0
        self._exact = exact

    @property
    def allowed(self) -> float:
        """The largest difference that passes."""
        return max(TOLERANCE, ROUNDING * self.float32)

    def passed(
        self, graph: Path, kv: KVLayout, report: Callable[[int], None], adapter: Path | None = None
    ) -> Differences:
        """The differences of ``graph`` (accuracy_level 0). Raises ExportError where one is larger than allowed.

        The tokens go through it as one prompt, then as a prompt in chunks whose end is decoded token by token over the
        KV cache. ``report`` is called with the tokens done. ``adapter`` is the file of the one it computes with.
        """
        tokens = len(self.ids)
        session = NativeSession(graph, kv, tokens, chunk=tokens)
        session.feed(adapter)

        def run(start: int, lengths: Sequence[int]) -> float:
            """The largest difference in steps of ``lengths`` from token ``start`` on."""
            session.rewind(start)
            worst = 0.0
            every = math.ceil(len(lengths) * self.reference.shape[1] / ASKED)
            for number, length in enumerate(lengths, 1):
                asks = number % every == 0 or number == len(lengths)
                known = start + length - (tokens - len(self.reference))
                logits = session.logits(self.ids[start : start + length], max(0, min(length, known)) if asks else 0)
                start += length
                worst = max(worst, self._difference(logits, known))
                report(length)
            return worst

        alone = min(ALONE, max(1, tokens // 4))
        together = tokens - alone
        chunks = [min(CHUNK, together - start) for start in range(0, together, CHUNK)]
        found = Differences(run(0, [tokens]), run(0, chunks), run(together, [1] * alone))
        session.close()
        what = f"{graph.name} with {adapter.name}" if adapter else graph.name
        for way, value in vars(found).items():
            if not value <= self.allowed:
                raise ExportError(
                    f"{what} differs from eager torch by {value:.2e} in {way} (at most {self.allowed:.2g} is "
                    "allowed): the graph is wrong for this model, so nothing was written. Please report the model's "
                    "name."
                )
        return found

    def _difference(self, logits: Floats, end: int) -> float:
        """The largest of ``logits`` [n, vocabulary] from the reference's rows that end at ``end``; not a number counts
        as infinite."""
        largest = _largest(logits, self.reference[end - len(logits) : end]) if len(logits) else 0.0
        if TOLERANCE < largest < math.inf and not self.float32:
            exact = self._exact()
            self.float32 = _largest(self.reference, exact)
            self.reference = exact
            largest = _largest(logits, exact[end - len(logits) : end])
        return largest


def _largest(found: Floats, expected: Floats) -> float:
    """The largest absolute difference, row by row: there may be a gigabyte of them."""
    rows = [float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)]
    return max(rows) if np.isfinite(rows).all() else math.inf


def device_check(ids: Sequence[int], row: Floats) -> Check:
    """What a visitor's graphics chip has to compute: eager torch's logits ``row`` [vocabulary] after ``ids``.

    A device is dropped for garbage, not for rounding, so four decimals will do.
    """
    likeliest = np.argsort(-row, kind="stable")[:TOP_K]
    return Check(list(ids), likeliest.tolist(), [round(float(row[token]), 4) for token in likeliest])


def measure(
    graph: Path, kv: KVLayout, ids: Sequence[int], source: Predictions, report: Callable[[int], None]
) -> Measured:
    """What ``graph`` makes of the text ``ids`` as it stands."""
    session = NativeSession(graph, kv, len(ids), chunk=GATE_TOKENS)
    tally = Tally(source, ids)
    for start in range(0, len(ids), GATE_TOKENS):
        part = ids[start : start + GATE_TOKENS]
        tally.add(session.logits(part, len(part)))
        report(len(part))
    session.close()
    return tally.measured()
