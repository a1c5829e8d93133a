"""Half-quadratic quantization: a grid that errs little on most weights, found without calibration text.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023: minimise the l_p norm (p < 1) of
the weights' errors, so that few outliers may err much. An auxiliary error e splits the problem in two that have closed
forms: e by the generalized shrinkage operator, then the grid by least squares on W - e. The paper moves a real zero
point and leaves the scale; our zero points are whole numbers, so here the scale moves too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.blocks import Blocks
from exporter.grid import Grid, min_max, split, stored

NORM = 0.7
ITERATIONS = 20
STIFFNESS = 10.0
"""The paper's beta, in units of the block's squared scale, and kappa: how it grows with each iteration."""
GROWTH = 1.01


def half_quadratic(weights: Tensor, bits: int) -> Blocks:
    """Quantize float [rows, columns] to the grid of least l_p error."""
    parts = split(weights)
    grid = fit(parts, bits)
    return grid.pack(grid.codes(parts), weights.shape[1], "half-quadratic")


def fit(weights: Tensor, bits: int) -> Grid:
    """The best grid met on the way, block by block, for ``weights`` [rows, blocks, 32]; never worse than min_max."""
    grid = min_max(weights, bits)
    best, least = grid, None
    beta = STIFFNESS
    for _ in range(ITERATIONS):
        codes = grid.codes(weights)
        errors = weights - grid.values(codes)
        loss = errors.abs().pow(NORM).sum(-1)
        if least is None:
            least = loss
        else:
            better = loss < least
            if not better.any():
                break
            least = torch.where(better, loss, least)
            best = Grid(
                bits, torch.where(better, grid.scales, best.scales), torch.where(better, grid.zeros, best.zeros)
            )
        target = weights - _shrink(errors, grid.scales.unsqueeze(-1), beta)
        beta *= GROWTH
        if bits == 4:
            zeros = (codes - target / grid.scales.unsqueeze(-1)).mean(-1).round().clamp(0, grid.top)
        else:
            zeros = grid.zeros
        centred = codes - zeros.unsqueeze(-1)
        norm = centred.square().sum(-1)
        scales = torch.where(norm > 0, (centred * target).sum(-1) / norm.clamp(min=1), grid.scales)
        grid = Grid(bits, stored(scales), zeros)
    return best


def _shrink(errors: Tensor, scales: Tensor, beta: float) -> Tensor:
    """The generalized soft threshold of the l_p norm, on errors measured in steps of the grid."""
    size = (errors / scales).abs()
    kept = (size - size.clamp(min=1e-6).pow(NORM - 1) / beta).clamp_(min=0)
    return errors.sign() * kept * scales
