"""How each matrix becomes Blocks: by which method, in how many bits, fitted to which text."""

from __future__ import annotations

import gc
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from exporter import calibration
from exporter.awq import Scaled, scale
from exporter.blocks import Blocks, round_symmetric, round_to_nearest
from exporter.errors import ExportError
from exporter.gptq import Compensation
from exporter.grid import search, split
from exporter.hqq import half_quadratic
from exporter.progress import stage
from exporter.sensitivity import NARROW, SEQUENCES, WIDE, effects, spend
from exporter.skeleton import matrices, skeleton, whole_model
from exporter.store import Store
from exporter.streamed import Round, Streamed, stream
from exporter.weights import Matrix, Weights

METHODS = ("rtn", "hqq", "gptq", "awq")
"""Round to nearest, half-quadratic, GPTQ, AWQ. The last two look at a calibration text."""

CALIBRATED = ("gptq", "awq")

CALIBRATION = calibration.TEXT

FITTED = 500_000_000
"""Parameters up to which GPTQ is the default; tests/bench/results/quantization.md has the figures, and why it is not
AWQ. Above, rounding to nearest: GPTQ factors a matrix [columns, columns] for every layer's input, which grows faster
than the model does."""

SMALL = 1_000_000_000
"""Parameters up to which embedding and lm_head get 8 bits. Above, tables of 256,000 rows in 8 bits would be a third of
the page."""

TOKENS_A_COLUMN = 8
"""Calibration tokens a column of the widest matrix: fewer leave the Hessian to chance, more only take time."""


@dataclass(frozen=True)
class Choice:
    """What the command line asks for. ``method`` "" is the default of the model's size, ``bits`` 0 means 4; ``budget``
    is in bits a weight over all matrices, 0 for none; ``calibration`` is a UTF-8 text."""

    method: str = ""
    bits: int = 0
    budget: float = 0.0
    calibration: Path = CALIBRATION

    @property
    def anew(self) -> bool:
        """Whether to round also what the checkpoint has in blocks that would go in without loss."""
        return bool(self.method or self.bits or self.budget)

    @property
    def looks_at_all(self) -> bool:
        """Whether the whole model is in memory in float32 before any of it is rounded."""
        return bool(self.budget or self.method == "awq")

    def method_for(self, parameters: int) -> str:
        """The method for a model of so many parameters."""
        return self.method or ("gptq" if parameters <= FITTED else "rtn")

    def calibration_text(self, tokenizer: Tokenizer, length: int, beginning: str = "") -> Tensor:
        """The text as int64 [sequences, length], each behind the tokens of ``beginning``.

        Raises ExportError where it cannot be read or is too short.
        """
        try:
            text = self.calibration.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(f"{self.calibration} cannot be read as UTF-8 text ({error}).") from error
        ids, first = (tokenizer.encode(part, add_special_tokens=False).ids for part in (text, beginning))
        return calibration.sequences(ids, length, first)

    def bits_of(self, matrix: Matrix, parameters: int) -> int:
        """Bits of a matrix, without a budget, in a model of so many parameters."""
        return WIDE if matrix.is_table and parameters <= SMALL else self.bits or NARROW


class Anew:
    """Weights without the blocks they are stored in."""

    def __init__(self, base: Weights) -> None:
        self.base = base

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self.base.read(name, start, stop)

    def blocks(self, name: str) -> Blocks | None:  # noqa: ARG002
        """None: what is stored in blocks is rounded all the same."""
        return None

    def refuse_unused(self, parameters: Collection[str], aliases: Collection[str]) -> None:
        self.base.refuse_unused(parameters, aliases)

    def stamp(self) -> object:
        return self.base.stamp()


class Chooser:
    """The Choose of a stream. ``bits`` by parameter name; the first ``text`` inputs are the measured text's and not
    looked at, or what is measured would be what was fitted."""

    def __init__(self, method: str, bits: Mapping[str, int], text: int) -> None:
        self.method, self.bits, self.text = method, bits, text
        self._inputs = torch.empty(0)
        self._compensation: Compensation | None = None

    def __call__(self, matrix: Matrix, inputs: Tensor | None) -> Round:
        bits = self.bits[matrix.name]
        if matrix.is_table or inputs is None:
            # Its rows are read one by one, so there are no inputs to fit an embedding to.
            if bits == WIDE:
                return partial(round_to_nearest, bits=WIDE)
            return round_symmetric if self.method == "rtn" else partial(half_quadratic, bits=NARROW)
        if self.method == "gptq":
            return partial(self._compensate(inputs).quantize, bits=bits)
        if self.method == "awq":
            return partial(_clipped, importance=inputs[self.text :].square().mean(0), bits=bits)
        return partial(half_quadratic if self.method == "hqq" else round_to_nearest, bits=bits)

    def _compensate(self, inputs: Tensor) -> Compensation:
        """Found once for q, k and v, which read the same tensor (kept, so that no other comes to lie at its place)."""
        known = self._inputs
        if self._compensation is None or inputs.data_ptr() != known.data_ptr() or inputs.shape != known.shape:
            self._inputs, self._compensation = inputs, Compensation(inputs[self.text :])
        return self._compensation


def _clipped(weights: Tensor, importance: Tensor, bits: int) -> Blocks:
    """AWQ's second half, on weights that are scaled already: the clipping that errs least on such inputs."""
    parts = split(weights)
    grid = search(parts, bits, split(importance[None]))
    return grid.pack(grid.codes(parts), weights.shape[1], "AWQ")


SCALES = "awq-scales"
"""Where the scales of AWQ are kept beside the Blocks."""


@dataclass
class Fitting:
    """The quantization of one model: what the choice comes to for its size, and the stream that does it.

    ``text`` int64 [sequences, tokens] is the calibration text.
    """

    choice: Choice
    config: Any
    weights: Weights
    text: Tensor

    def __post_init__(self) -> None:
        self.model: Any = skeleton(self.config, self.weights)
        self.matrices = matrices(self.model, self.weights)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.method = self.choice.method_for(self.parameters)
        widest = max(matrix.columns for matrix in self.matrices)
        self.text = self.text[: math.ceil(TOKENS_A_COLUMN * widest / self.text.shape[1])]

    @property
    def embedding(self) -> str:
        """The name of the embedding's parameter."""
        return self.matrices[0].name

    def run(self, ids: Sequence[int], positions: Sequence[int], folder: Path) -> Streamed:
        """Quantize into the Store ``folder`` and measure on ``ids``; arguments and result are stream's.

        AWQ and a budget look at the whole model first, which is then in memory in float32, and gone before the stream.
        """
        bits = {matrix.name: self.choice.bits_of(matrix, self.parameters) for matrix in self.matrices}
        if self.choice.looks_at_all:
            whole = whole_model(self.config, self.weights)
            if self.choice.budget:
                bits = self._spend(whole)
            if self.method == "awq":
                self._scale(whole).save(folder / SCALES)
            del whole
            gc.collect()  # modules refer to one another
        weights = as_fitted(self.weights, folder)
        model = skeleton(self.config, weights)
        text = self.text if self.method in CALIBRATED else None
        return stream(model, weights, Store(folder), Chooser(self.method, bits, len(ids)), ids, positions, text)

    def _spend(self, whole: Any) -> dict[str, int]:
        with stage("Measuring the effect of each matrix", self.text[:SEQUENCES].numel(), "tokens") as bar:
            return spend(self.matrices, effects(whole, self.text, bar.update), self.choice.budget)

    def _scale(self, whole: Any) -> Scaled:
        layers = len(whole.get_decoder().layers)
        with stage("Scaling channels", layers * self.text.numel(), "tokens") as bar:
            return scale(whole, self.weights, self.text, bar.update)


def as_fitted(weights: Weights, folder: Path) -> Weights:
    """``weights`` as they were quantized into ``folder``: AWQ may have scaled their channels."""
    path = folder / SCALES
    return Scaled.open(weights, path) if path.is_file() else weights
