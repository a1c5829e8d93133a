"""Block-quantized weights: the stored form of every linear layer and embedding, and round-to-nearest into it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

BLOCK_SIZE = 32
_PER_ROW = ("codes", "scales", "minima", "zeros", "scale_factors", "minimum_factors")
"""The tensors of Blocks whose first axis is rows."""


@dataclass(frozen=True)
class Blocks:
    """A matrix [rows, columns] in blocks of ``size`` along its columns, the last one padded with zero weights.

    ``codes`` uint8 [rows, blocks, size · bits / 8], two 4-bit codes a byte, the lower nibble first; ``scales`` float16
    [rows, blocks]. A weight is ``scale · (code - shift) + minimum`` where ``minima`` (float16 [rows, blocks]) are
    given, as in GGUF's Q4_1; else ``scale · (code - zero)`` with ``zeros`` (uint8 [rows, blocks]) or the middle code
    (8 or 128). ``shift`` puts the middle of a shorter code (5 bits) on the middle of the stored one.

    GGUF's K formats write the scales of a superblock as one float16 times an integer for each of its blocks. Then
    ``scales`` is float16 [rows, superblocks] and ``scale_factors`` (uint8 or int8 [rows, blocks]) has the integers, and
    likewise ``minima`` with ``minimum_factors``; the product needs more bits than float16 has.

    ``method`` says how the codes were found; ``error`` is the largest absolute difference from the source weights, once
    they were measured (streamed.py).
    """

    bits: int
    columns: int
    codes: Tensor
    scales: Tensor
    minima: Tensor | None
    zeros: Tensor | None
    method: str
    error: float = 0.0
    size: int = BLOCK_SIZE
    shift: int = 0
    scale_factors: Tensor | None = None
    minimum_factors: Tensor | None = None

    @property
    def rows(self) -> int:
        return int(self.codes.shape[0])

    @property
    def bytes(self) -> int:
        """Bytes that the weights take in the shards."""
        zeros = None if self.zeros is None else pack_zeros(self.zeros, self.bits)
        stored = (self.codes, self.scales, self.minima, self.scale_factors, self.minimum_factors, zeros)
        return sum(part.numel() * part.element_size() for part in stored if part is not None)

    @property
    def scales_form(self) -> tuple[Any, ...]:
        """What must agree before scales (and minima) of several matrices may be kept as one tensor."""
        factors = None if self.scale_factors is None else self.scale_factors.shape[1] // self.scales.shape[1]
        return self.size, self.minima is not None, self.shift, factors

    @property
    def form(self) -> tuple[Any, ...]:
        """What must agree before matrices may be stacked."""
        return self.bits, self.zeros is not None, *self.scales_form

    def block_scales(self) -> Tensor:
        """The scale of every block, float32 [rows, blocks]."""
        return _product(self.scales, self.scale_factors)

    def block_minima(self) -> Tensor | None:
        """The minimum of every block, float32 [rows, blocks], or None."""
        return None if self.minima is None else _product(self.minima, self.minimum_factors)

    def dequantize(self) -> Tensor:
        """The weights that every runtime computes with, float32 [rows, columns]."""
        weights = (unpack_nibbles(self.codes) if self.bits == 4 else self.codes).float()
        scales, minima = self.block_scales().unsqueeze(-1), self.block_minima()
        if minima is not None:
            weights.sub_(self.shift).mul_(scales).add_(minima.unsqueeze(-1))
        elif self.zeros is not None:
            weights.sub_(self.zeros.float().unsqueeze(-1)).mul_(scales)
        else:
            weights.sub_(1 << (self.bits - 1)).mul_(scales)
        return weights.flatten(1)[:, : self.columns]

    def take_rows(self, index: Tensor | slice) -> Blocks:
        """The same blocks with rows in the order of ``index`` (int64 [rows]), or those of a slice."""
        parts = {name: getattr(self, name) for name in _PER_ROW}
        return replace(self, **{name: part[index] for name, part in parts.items() if part is not None})

    def room_for(self, rows: int) -> Blocks:
        """Blocks of this form with so many rows, not filled in yet.

        Pieces of a matrix are copied into them as they come: kept one by one between the work's temporaries, they
        would leave a heap full of holes (3.6 GB for 0.3 GB of Blocks, seen with glibc).
        """
        tensors = {key: value for key, value in vars(self).items() if isinstance(value, Tensor)}
        empty: dict[str, Any] = {key: value.new_empty(rows, *value.shape[1:]) for key, value in tensors.items()}
        return replace(self, error=0.0, **empty)

    def with_rows(self, rows: slice, part: Blocks) -> Blocks:
        """The same with ``rows`` filled in place from ``part``, which has this form."""
        for key, value in vars(self).items():
            if isinstance(value, Tensor):
                value[rows] = getattr(part, key)
        return replace(self, error=max(self.error, part.error))


def _product(values: Tensor, factors: Tensor | None) -> Tensor:
    """float16 [rows, superblocks] times integers [rows, blocks], exact in float32; without factors ``values`` alone."""
    if factors is None:
        return values.float()
    return (values.float().unsqueeze(-1) * factors.view(*values.shape, -1).float()).flatten(1)


def stack(parts: list[Blocks]) -> Blocks | None:
    """Matrices below one another, or None where their forms differ."""
    first = parts[0]
    if any(part.form != first.form or part.columns != first.columns for part in parts):
        return None
    joined = {name: [getattr(part, name) for part in parts] for name in _PER_ROW}
    present: dict[str, Any] = {name: torch.cat(each) for name, each in joined.items() if each[0] is not None}
    return replace(first, **present, error=max(part.error for part in parts))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes as Blocks have them: float [..., n], whole numbers → uint8 [..., n · bits / 8]."""
    # By way of int8, to which torch converts five times as fast as to uint8.
    return codes.to(torch.uint8) if bits == 8 else pack_nibbles(codes.to(torch.int8).view(torch.uint8))


def pack_nibbles(codes: Tensor) -> Tensor:
    """uint8 [..., n] of 4-bit codes → uint8 [..., n / 2], the first of each pair in the lower nibble."""
    pairs = codes.contiguous().view(torch.int16)  # the second code times 256, plus the first: half the time of slices
    return (pairs | (pairs >> 4)).to(torch.uint8)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of pack_nibbles: uint8 [..., n / 2] → uint8 [..., n]."""
    pairs = packed.to(torch.int16)
    return ((pairs & 0x0F) | ((pairs & 0xF0) << 4)).view(torch.uint8)


def pack_zeros(zeros: Tensor, bits: int) -> Tensor:
    """Zero points as MatMulNBits reads them: uint8 [rows, blocks] → the same, or for 4 bits [rows, ⌈blocks / 2⌉]."""
    if bits == 8:
        return zeros
    if zeros.shape[-1] % 2:
        zeros = torch.nn.functional.pad(zeros, (0, 1))
    return pack_nibbles(zeros)


def round_to_nearest(weights: Tensor, bits: int) -> Blocks:
    """Quantize float [rows, columns] by rounding, 4 bits with a zero point per block, 8 bits symmetrically.

    Scales are rounded to float16 before the codes are chosen, so that what is stored is what was optimized.
    """
    rows, columns = weights.shape
    blocks = -(-columns // BLOCK_SIZE)
    weights = weights.detach().float()
    padded = torch.nn.functional.pad(weights, (0, blocks * BLOCK_SIZE - columns)).view(rows, blocks, BLOCK_SIZE)
    top = (1 << bits) - 1
    tiny = torch.finfo(torch.float16).smallest_normal
    if bits == 8:
        scales = (padded.abs().amax(-1, keepdim=True) / 127).clamp(min=tiny).half()
        zeros = torch.full_like(scales, 128, dtype=torch.float32)
    else:
        low = padded.amin(-1, keepdim=True).clamp(max=0)
        high = padded.amax(-1, keepdim=True).clamp(min=0)
        scales = ((high - low) / top).clamp(min=tiny).half()
        zeros = (-low / scales.float()).round().clamp(0, top)
    codes = (padded / scales.float()).round_().add_(zeros).clamp_(0, top)
    return Blocks(
        bits=bits,
        columns=columns,
        codes=pack(codes, bits),
        scales=scales.squeeze(-1),
        minima=None,
        zeros=None if bits == 8 else zeros.to(torch.uint8).squeeze(-1),
        method=f"round to nearest, {bits} bit",
    )


def round_symmetric(weights: Tensor) -> Blocks:
    """Quantize float [rows, columns] to 4 bits without zero points, at 4.5 bits a weight, as GGUF's Q4_0 does.

    The largest weight of a block, whatever its sign, becomes code 0, so that all sixteen codes are in reach.
    """
    rows, columns = weights.shape
    blocks = -(-columns // BLOCK_SIZE)
    weights = weights.detach().float()
    padded = torch.nn.functional.pad(weights, (0, blocks * BLOCK_SIZE - columns)).view(rows, blocks, BLOCK_SIZE)
    low, high = padded.amin(-1, keepdim=True), padded.amax(-1, keepdim=True)
    largest = torch.where(high > -low, high, low)
    tied = (high == -low).squeeze(-1)
    if tied.any():  # the first of them counts; argmax of all blocks would take as long as everything else here
        parts = padded[tied]
        largest[tied] = parts.gather(-1, parts.abs().argmax(-1, keepdim=True))
    scales = (largest / -8).half()
    tiny = torch.finfo(torch.float16).smallest_normal
    scales = torch.where(scales.abs() < tiny, torch.full_like(scales, tiny), scales)
    codes = pack((padded / scales.float()).round_().add_(8).clamp_(0, 15), 4)
    return Blocks(4, columns, codes, scales.squeeze(-1), None, None, "round to nearest, symmetric, 4 bit")
