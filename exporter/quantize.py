"""How each matrix becomes Blocks."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from exporter.blocks import round_to_nearest
from exporter.streamed import Round
from exporter.weights import Matrix


def choose(matrix: Matrix, inputs: Tensor | None) -> Round:  # noqa: ARG001
    """Round to nearest: 4 bits, 8 for embeddings and lm_head. Called for matrices that do not go in without loss."""
    return partial(round_to_nearest, bits=8 if matrix.is_table else 4)
