"""The values that a block can take, how they are found, and rounding to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.blocks import BLOCK_SIZE, Blocks, pack

MIDDLE = 128
"""The zero point of every 8-bit block; it is not stored."""


@dataclass(frozen=True)
class Grid:
    """For each block of a matrix the values ``scale · (code - zero)``, code 0 to 2^bits - 1.

    ``scales`` float32 [rows, blocks], holding float16 values; ``zeros`` float32 [rows, blocks], whole numbers.
    """

    bits: int
    scales: Tensor
    zeros: Tensor

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    def codes(self, weights: Tensor) -> Tensor:
        """The nearest code of each weight, float32 like ``weights`` [rows, blocks, 32]."""
        codes = weights / self.scales.unsqueeze(-1)
        return codes.round_().add_(self.zeros.unsqueeze(-1)).clamp_(0, self.top)

    def values(self, codes: Tensor) -> Tensor:
        """What ``codes`` [rows, blocks, 32] stand for."""
        return (codes - self.zeros.unsqueeze(-1)).mul_(self.scales.unsqueeze(-1))

    def column(self, index: int) -> Grid:
        """The grid of one column of weights, as [rows, 1]."""
        block = slice(index // BLOCK_SIZE, index // BLOCK_SIZE + 1)
        return Grid(self.bits, self.scales[:, block], self.zeros[:, block])

    def pack(self, codes: Tensor, columns: int, method: str) -> Blocks:
        """Blocks of ``codes`` [rows, blocks, 32], found for weights [rows, columns] by ``method``."""
        return Blocks(
            bits=self.bits,
            columns=columns,
            codes=pack(codes, self.bits),
            scales=self.scales.half(),
            minima=None,
            zeros=None if self.bits == 8 else self.zeros.to(torch.uint8),
            method=f"{method}, {self.bits} bit",
        )


def split(weights: Tensor) -> Tensor:
    """float [rows, columns] → float32 [rows, blocks, 32], the last block padded with zeros."""
    rows, columns = weights.shape
    weights = weights.detach().float()
    return torch.nn.functional.pad(weights, (0, -columns % BLOCK_SIZE)).view(rows, -1, BLOCK_SIZE)


def stored(scales: Tensor) -> Tensor:
    """Scales as they will be stored: rounded to float16 before codes are chosen, never below its smallest normal."""
    return scales.clamp(min=torch.finfo(torch.float16).smallest_normal).half().float()


def min_max(weights: Tensor, bits: int, shrink: float = 1.0) -> Grid:
    """The grid over each block's range (with 0 in it) of ``weights`` [rows, blocks, 32], 8 bits symmetrically.

    ``shrink`` below 1 makes the range smaller, which clips the largest weights and resolves the others better.
    """
    if bits == 8:
        scales = stored(weights.abs().amax(-1) * (shrink / 127))
        return Grid(bits, scales, torch.full_like(scales, MIDDLE))
    low = weights.amin(-1).clamp(max=0) * shrink
    high = weights.amax(-1).clamp(min=0) * shrink
    top = (1 << bits) - 1
    scales = stored((high - low) / top)
    return Grid(bits, scales, (-low / scales).round().clamp(0, top))


SHRINKS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76)


def search(weights: Tensor, bits: int, importance: Tensor | None = None) -> Grid:
    """The best of several shrunken ranges, block by block, by the squared error weighted by ``importance``.

    ``weights`` [rows, blocks, 32]; ``importance`` broadcasts to it.
    """
    best: Grid | None = None
    least = torch.empty(0)
    for shrink in SHRINKS:
        grid = min_max(weights, bits, shrink)
        errors = (weights - grid.values(grid.codes(weights))).square_()
        loss = (errors if importance is None else errors * importance).sum(-1)
        if best is None:
            best, least = grid, loss
            continue
        better = loss < least
        least = torch.where(better, loss, least)
        best = Grid(bits, torch.where(better, grid.scales, best.scales), torch.where(better, grid.zeros, best.zeros))
    assert best is not None
    return best
