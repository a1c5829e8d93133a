"""The stage that turns a model's weights into Blocks, and the model into what the blocks stand for."""

from __future__ import annotations

from typing import Any

import torch

from exporter.blocks import Blocks, round_to_nearest
from exporter.progress import stage
from exporter.skeleton import matrices
from exporter.weights import Weights


@torch.no_grad()
def quantize(model: Any, weights: Weights) -> dict[str, Blocks]:
    """Blocks of every linear layer and embedding by parameter name; the model's weights become what they stand for.

    As the checkpoint has them where that goes in without loss, else rounded: 4 bits, 8 for embeddings and lm_head.
    """
    blocks: dict[str, Blocks] = {}
    parameters = dict(model.named_parameters())
    found = matrices(model, weights)
    with stage("Quantizing", sum(matrix.rows * matrix.columns for matrix in found), "weights") as bar:
        for matrix in found:
            parameter = parameters[matrix.name]
            stored = matrix.blocks()
            if stored is None:
                stored = round_to_nearest(parameter, 8 if matrix.is_table else 4)
                parameter.copy_(stored.dequantize())
            blocks[matrix.name] = stored
            bar.update(parameter.numel())
    return blocks
