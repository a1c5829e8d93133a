"""ggml's quantized tensors as Blocks, bit for bit.

The formats are ggml's (ggml-common.h, and the gguf package's quants.py, against which the tests compare):

- Q4_0, Q5_0, Q8_0: a float16 scale for 32 codes. Q4_1, Q5_1: a float16 minimum as well.
- Q4_K, Q5_K: superblocks of 256 with a float16 scale and a float16 minimum, each times a 6-bit integer for every 32.
- Q6_K: superblocks of 256 with a float16 scale, times an int8 for every 16.

Codes of 4 bits stay 4 bits; those of 5 and 6 are carried in 8, because MatMulNBits has no width between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporter.blocks import BLOCK_SIZE, Blocks, pack_nibbles

SUPERBLOCK = 256
_FIVE_BITS = 128 - 16
_SIX_BITS = 128 - 32
"""What is added to a shorter code so that its middle is 128, where MatMulNBits has the zero of 8 bits."""


def read(kind: str, data: Any) -> Blocks | None:
    """``data``, uint8 [rows, bytes a row] of ggml's type ``kind``, as Blocks; None for a type that has no exact form.

    Exact means that ``dequantize`` gives the very float32 numbers that ggml computes.
    """
    if kind not in _READERS:
        return None
    bytes_a_block, reader = _READERS[kind]
    raw = torch.from_numpy(np.array(data))  # a copy: the file is mapped read-only
    return reader(raw.view(raw.shape[0], -1, bytes_a_block), f"GGUF {kind}, exact")


def _halves(raw: Tensor, start: int) -> Tensor:
    """The float16 at byte ``start`` of every block."""
    return raw[..., start : start + 2].contiguous().view(torch.float16)[..., 0]


def _nibbles(raw: Tensor) -> Tensor:
    """ggml keeps code i of a group in the low nibble of byte i, and the code half a group on in the high one."""
    return torch.cat((raw & 15, raw >> 4), -1)


def _q4_0(raw: Tensor, method: str) -> Blocks:
    columns = raw.shape[1] * BLOCK_SIZE
    return Blocks(4, columns, pack_nibbles(_nibbles(raw[..., 2:])), _halves(raw, 0), None, None, method)


def _q4_1(raw: Tensor, method: str) -> Blocks:
    return _with_minimum(4, _nibbles(raw[..., 4:]), _halves(raw, 0), _halves(raw, 2), method)


def _q5_0(raw: Tensor, method: str) -> Blocks:
    codes = _fifth_bits(_nibbles(raw[..., 6:]), raw[..., 2:6]) + _FIVE_BITS
    return Blocks(8, raw.shape[1] * BLOCK_SIZE, codes, _halves(raw, 0), None, None, method)


def _q5_1(raw: Tensor, method: str) -> Blocks:
    codes = _fifth_bits(_nibbles(raw[..., 8:]), raw[..., 4:8])
    return _with_minimum(8, codes, _halves(raw, 0), _halves(raw, 2), method)


def _q8_0(raw: Tensor, method: str) -> Blocks:
    codes = (raw[..., 2:].contiguous().view(torch.int8).to(torch.int16) + 128).to(torch.uint8)
    return Blocks(8, raw.shape[1] * BLOCK_SIZE, codes, _halves(raw, 0), None, None, method)


def _fifth_bits(codes: Tensor, bits: Tensor) -> Tensor:
    """4-bit ``codes`` [..., 32] with bit i of the 4 bytes ``bits`` as the fifth of code i."""
    high = (bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return codes | (high.flatten(-2) << 4)


def _with_minimum(bits: int, codes: Tensor, scales: Tensor, minima: Tensor, method: str) -> Blocks:
    # A constant block has scale 0, and the zero point of the operators is -minimum / scale: it gets a scale of its
    # minimum's size and codes that do not use it.
    flat = scales == 0
    codes = codes.masked_fill(flat.unsqueeze(-1), 0)
    scales = torch.where(flat, _size_of(minima), scales)
    columns, shift = codes.shape[1] * BLOCK_SIZE, 0 if bits == 4 else _FIVE_BITS
    stored = pack_nibbles(codes) if bits == 4 else codes + shift
    return Blocks(bits, columns, stored, scales, minima, None, method, shift=shift)


def _size_of(values: Tensor) -> Tensor:
    return torch.where(values == 0, torch.ones_like(values), values.abs())


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, minimum) integers uint8 [rows, superblocks, 8] of the 12 bytes of a Q4_K or Q5_K superblock."""
    first, second, third = torch.split(packed, 4, -1)
    scales = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), -1)
    minima = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), -1)
    return scales, minima


def _k_with_minimum(bits: int, raw: Tensor, codes: Tensor, method: str) -> Blocks:
    """Q4_K and Q5_K begin alike; ``codes`` [rows, superblocks, 8, 32]."""
    scales, minima = _halves(raw, 0), _halves(raw, 2)
    factors, minimum_factors = _six_bits(raw[..., 4:16])
    # As in _with_minimum: a block without a scale gets the superblock's, or where there is none, the minimum's size.
    flat = (factors == 0) | (scales == 0).unsqueeze(-1)
    codes = codes.masked_fill(flat.unsqueeze(-1), 0).flatten(1, 2)
    factors = factors.masked_fill(flat, 1)
    scales = torch.where(scales == 0, _size_of(minima), scales)
    shift = 0 if bits == 4 else _FIVE_BITS
    return Blocks(
        bits, raw.shape[1] * SUPERBLOCK, pack_nibbles(codes) if bits == 4 else codes + shift, scales, -minima, None,
        method, shift=shift, scale_factors=factors.flatten(1), minimum_factors=minimum_factors.flatten(1),
    )  # fmt: skip


def _q4_k(raw: Tensor, method: str) -> Blocks:
    return _k_with_minimum(4, raw, _pairs(raw[..., 16:]), method)


def _q5_k(raw: Tensor, method: str) -> Blocks:
    fifth = (raw[..., 16:48].unsqueeze(-2) >> torch.arange(8, dtype=torch.uint8).unsqueeze(-1)) & 1
    return _k_with_minimum(8, raw, _pairs(raw[..., 48:]) | (fifth << 4), method)


def _pairs(packed: Tensor) -> Tensor:
    """128 bytes, of which every 32 hold two blocks, low nibbles first → codes [rows, superblocks, 8, 32]."""
    groups = packed.reshape(*packed.shape[:2], 4, 32)
    return torch.stack((groups & 15, groups >> 4), -2).flatten(-3, -2)


def _q6_k(raw: Tensor, method: str) -> Blocks:
    low = raw[..., :128].reshape(*raw.shape[:2], 2, 2, 32)  # [half, 32 codes at a time, code]
    low = torch.cat((low & 15, low >> 4), -2)  # [half, quarter, code]
    high = raw[..., 128:192].reshape(*raw.shape[:2], 2, 1, 32) >> (2 * torch.arange(4, dtype=torch.uint8)).unsqueeze(-1)
    codes = (low | ((high & 3) << 4)) + _SIX_BITS
    factors = raw[..., 192:208].contiguous().view(torch.int8)
    codes, scales = codes.reshape(raw.shape[0], -1, 16), _halves(raw, 208)
    return Blocks(
        8, raw.shape[1] * SUPERBLOCK, codes, scales, None, None, method, size=16, scale_factors=factors.flatten(1)
    )


_READERS: dict[str, tuple[int, Callable[[Tensor, str], Blocks]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
"""Bytes of a (super)block, and what reads an array of them, by ggml's name of the type."""

EXACT = tuple(_READERS)
"""ggml's types that go into Blocks without loss."""
