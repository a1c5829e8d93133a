"""The gate: the finished graph against eager torch with the same weights, then against the source on a text.

At accuracy_level 0 ONNX Runtime computes in float32, so a difference above 1e-4 is a wrong graph and not rounding, as
long as logits are small; see ``tolerance``.
What ships is accuracy_level 4 (activations in int8 blocks), which moves logits by far more than that; its gate is the
perplexity, recorded in the manifest.
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
PRECISION = 2e-5
"""Of the largest logit. gemma-3-270m's reach 32 over hidden states of 32,000; there torch's own float32 is 9e-5 from
float64 on 64 tokens, and so is ONNX Runtime's (9e-5 and, where minima are sums, 1.1e-4). A dropped soft-capping makes
6.6e-3, a dropped window 3.4."""

GATE_TOKENS = 256
TEXT_TOKENS = 1024
LEAST_TOKENS = 64
MEASURED = 300_000_000_000
"""Products of a parameter with a token that one run over the text may take, about: 1,024 tokens of 300 M parameters."""

GATED = 160_000_000_000
"""The same for the gate, which runs each graph three times, in float32: 256 tokens of 600 M parameters."""

CHUNK = 100
DECODED = 4
"""One in so many of the gate's tokens is decoded alone, over the KV cache: 64 of 256."""

CHECK_TOKENS = 48
"""Of the page's own check of a device: past the 32 from which ONNX Runtime's WebGPU attention takes other kernels."""

TEXT = Path(__file__).with_name("text.txt")


@dataclass(frozen=True)
class Tokens:
    """How much of TEXT is measured (perplexity), and how much of its beginning goes through the gate."""

    text: int
    gate: int


def tokens(parameters: int) -> Tokens:
    """TEXT_TOKENS and GATE_TOKENS, fewer for a large model, so that measuring it takes minutes and not hours."""
    text, gate = min(TEXT_TOKENS, MEASURED // parameters), min(GATE_TOKENS, GATED // parameters)
    return Tokens(max(LEAST_TOKENS, text), max(LEAST_TOKENS, gate))


@dataclass(frozen=True)
class Differences:
    """Largest absolute logit differences from eager torch."""

    prefill: float
    chunked: float
    decode: float


@torch.no_grad()
def eager_logits(model: Any, ids: Sequence[int]) -> Floats:
    """Logits of eager torch at every position, float32 [tokens, vocabulary]."""
    logits: Floats = model(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()
    return logits


def tolerance(reference: Floats) -> float:
    """The largest difference from ``reference`` [tokens, vocabulary] that float32 accounts for."""
    return max(TOLERANCE, PRECISION * float(np.abs(reference).max()))


def compare(
    graph: Path, kv: KVLayout, reference: Floats, ids: Sequence[int], report: Callable[[int], None]
) -> Differences:
    """Run ``graph`` (accuracy_level 0) on ``ids`` in three ways, against ``reference`` [tokens, vocabulary].

    Prefill at once, prefill in chunks, and the last tokens one by one over the KV cache. ``report`` is called with
    the tokens done. Raises ExportError if one differs by more than ``tolerance``, or is not a number.
    """
    tokens = len(ids)
    session = NativeSession(graph, kv, tokens, chunk=tokens)

    def run(lengths: Sequence[int]) -> float:
        session.rewind(0)
        worst, start = 0.0, 0
        for length in lengths:
            logits = session.logits(ids[start : start + length], length)
            difference = np.abs(logits - reference[start : start + length]).max()
            worst = max(worst, float(difference)) if np.isfinite(difference) else math.inf
            start += length
            report(length)
        return worst

    first, most = tokens - max(1, tokens // DECODED), tolerance(reference)
    chunks = [min(CHUNK, tokens - start) for start in range(0, tokens, CHUNK)]
    found = Differences(run([tokens]), run(chunks), run([first, *[1] * (tokens - first)]))
    session.close()
    for way, value in vars(found).items():
        if not value <= most:
            raise ExportError(
                f"{graph.name} differs from eager torch by {value:.2e} in {way} (at most {most:.2g} is allowed): "
                "the graph is wrong for this model, so nothing was written. Please report the model's name."
            )
    return found


def device_check(ids: Sequence[int], reference: Floats) -> Check:
    """What a visitor's graphics chip has to compute, from eager torch's ``reference`` [tokens, vocabulary] for ``ids``.

    A device is dropped for garbage, not for rounding, so four decimals will do.
    """
    ids = list(ids[:CHECK_TOKENS])
    row = reference[len(ids) - 1]
    likeliest = np.argsort(-row, kind="stable")[:TOP_K]
    return Check(ids, likeliest.tolist(), [round(float(row[token]), 4) for token in likeliest])


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
