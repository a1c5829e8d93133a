"""GPTQ: rounding one column after the other, each error made good by the columns that are still to come.

Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv 2210.17323. The columns are taken by falling importance (its "act order"), on grids that are fixed
beforehand, so that a block's scale need not wait for the block's turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.blocks import BLOCK_SIZE, Blocks
from exporter.grid import Grid, search, split

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a part of its mean: the paper's value."""

LAZY = 128
"""Columns between two updates of the rest of the matrix (the paper's lazy batch updates)."""


class Compensation:
    """What GPTQ needs to know of a layer's inputs, float32 [tokens, columns]. Rows of weights go independently."""

    def __init__(self, inputs: Tensor) -> None:
        hessian = inputs.T @ inputs / len(inputs)
        self.importance = hessian.diagonal().clone()
        self.order = torch.argsort(self.importance, descending=True, stable=True)
        self.factor = _inverse_factor(hessian[self.order][:, self.order])

    def quantize(self, weights: Tensor, bits: int) -> Blocks:
        """Blocks of rows of the layer's weights, float [rows, columns]."""
        grid = search(split(weights), bits, split(self.importance[None]))
        codes = grid.zeros.unsqueeze(-1).repeat(1, 1, BLOCK_SIZE)
        codes.flatten(1)[:, : weights.shape[1]] = self.codes(weights, grid)
        return grid.pack(codes, weights.shape[1], "GPTQ")

    def codes(self, weights: Tensor, grid: Grid) -> Tensor:
        """Codes float32 [rows, columns] of ``weights`` on ``grid``, by the paper's algorithm 1."""
        left = weights.float()[:, self.order]
        made = torch.empty_like(left)
        block = self.order // BLOCK_SIZE
        scales, zeros, factor = grid.scales.T[block], grid.zeros.T[block], self.factor
        columns = left.shape[1]
        for start in range(0, columns, LAZY):
            end = min(columns, start + LAZY)
            part = left[:, start:end].T.contiguous()  # a column of the matrix is then a row in memory
            errors = torch.empty_like(part)
            for i in range(start, end):
                column, scale, zero = part[i - start], scales[i], zeros[i]
                code = (column / scale).round_().add_(zero).clamp_(0, grid.top)
                made[:, i] = code
                errors[i - start] = error = (column - (code - zero) * scale) / factor[i, i]
                part[i - start :].addr_(factor[i, i:end], error, alpha=-1)
            left[:, end:].addmm_(errors.T, factor[start:end, end:], alpha=-1)
        result = torch.empty_like(made)
        result[:, self.order] = made
        return result


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse."""
    damped = hessian.clone()
    damped.diagonal().add_(DAMPING * float(hessian.diagonal().mean()) + torch.finfo(torch.float32).tiny)
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return factor
