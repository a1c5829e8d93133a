"""Blocks: packing, rounding, and what they stand for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.blocks import pack, pack_nibbles, pack_zeros, round_symmetric, round_to_nearest, stack, unpack_nibbles


@given(st.integers(1, 40), st.integers(0, 1 << 30))
@settings(max_examples=30, deadline=None)
def test_packing_nibbles_goes_both_ways(pairs: int, seed: int) -> None:
    codes = torch.randint(0, 16, (3, 2 * pairs), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)


def test_the_first_code_is_the_lower_nibble() -> None:
    assert pack_nibbles(torch.tensor([[1, 2]], dtype=torch.uint8)).item() == 0x21


def test_odd_zero_points_are_padded() -> None:
    assert pack_zeros(torch.tensor([[3, 4, 5]], dtype=torch.uint8), 4).tolist() == [[0x43, 0x05]]


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 100),
    bits=st.sampled_from([4, 8]),
    spread=st.sampled_from([1e-3, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 3.0, -3.0]),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=60, deadline=None)
def test_rounding_errs_by_about_half_a_step(
    rows: int, columns: int, bits: int, spread: float, shift: float, seed: int
) -> None:
    weights = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) + shift) * spread
    blocks = round_to_nearest(weights, bits)
    assert blocks.dequantize().shape == weights.shape
    scales = blocks.scales.float().repeat_interleave(32, 1)[:, :columns]
    # Half a step of the code, as much again for a zero point that was rounded, and float16's rounding of the scale.
    slack = 1.05 if bits == 4 else 0.6
    assert ((blocks.dequantize() - weights).abs() <= slack * scales + 1e-6 * spread).all()


def test_zero_weights_stay_zero() -> None:
    for bits in (4, 8):
        assert not round_to_nearest(torch.zeros(2, 64), bits).dequantize().any()


def test_bytes_are_those_of_the_tensors() -> None:
    four = round_to_nearest(torch.randn(8, 96), 4)
    assert four.bytes == 8 * (48 + 2 * 3 + 2)
    assert round_to_nearest(torch.randn(8, 96), 8).bytes == 8 * (96 + 2 * 3)


def test_stacking_needs_one_form() -> None:
    four, eight = round_to_nearest(torch.randn(2, 32), 4), round_to_nearest(torch.randn(2, 32), 8)
    joined = stack([four, four])
    assert joined is not None and torch.equal(joined.dequantize(), torch.cat([four.dequantize()] * 2))
    assert stack([four, eight]) is None


@given(st.integers(1, 100), st.sampled_from([1e-3, 1.0, 1e3]), st.integers(0, 1 << 30))
@settings(max_examples=30, deadline=None)
def test_symmetric_rounding_meets_the_largest_weight(columns: int, spread: float, seed: int) -> None:
    weights = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed)) * spread
    blocks = round_symmetric(weights)
    assert blocks.zeros is None and blocks.minima is None
    steps = blocks.scales.float().abs().repeat_interleave(32, 1)[:, :columns]
    found = blocks.dequantize()
    # Half a step, but at the far end, whose code would be 16: there up to a whole one.
    assert ((found - weights).abs() <= 1.01 * steps + 1e-6 * spread).all()
    largest = weights[:, :32].abs().argmax(-1, keepdim=True)
    torch.testing.assert_close(found.gather(1, largest), weights.gather(1, largest), rtol=2e-3, atol=7e-5)


def test_symmetric_rounding_in_figures() -> None:
    """Scale -2 / -8 = 0.25 and the largest at code 0, whichever sign it has; zero stays zero."""
    row = torch.tensor([[-2.0, 1.0, 0.5, 0.3, *[0.0] * 28]])
    assert unpack_nibbles(round_symmetric(row).codes)[0, 0, :5].tolist() == [0, 12, 10, 9, 8]
    assert unpack_nibbles(round_symmetric(-row).codes)[0, 0, :5].tolist() == [0, 12, 10, 9, 8]
    assert not round_symmetric(torch.zeros(2, 64)).dequantize().any()


def test_of_two_largest_weights_the_first_becomes_code_0() -> None:
    row = torch.tensor([[0.5, 2.0, *[0.0] * 20, -2.0, *[0.0] * 41], [2.0, 1.0, *[0.0] * 62]])
    for sign in (1, -1):
        codes = unpack_nibbles(round_symmetric(sign * row).codes)
        assert codes[0, 0, [0, 1, 22]].tolist() == [6, 0, 15]
        assert codes[1, 0, :2].tolist() == [0, 4]


def test_packed_codes_come_back() -> None:
    codes = torch.arange(256).float().view(2, 4, 32)
    assert torch.equal(pack(codes, 8).float(), codes)
    assert torch.equal(unpack_nibbles(pack(codes % 16, 4)).float(), codes % 16)
    assert pack(torch.tensor([[3.0, 12.0]]), 4).tolist() == [[3 + 16 * 12]]


def test_pieces_fill_the_room_that_was_made() -> None:
    weights = torch.randn(7, 70)
    for method in (partial(round_to_nearest, bits=4), partial(round_to_nearest, bits=8), round_symmetric):
        made = method(weights[:3]).room_for(7)
        for start, error in ((0, 0.1), (3, 0.3), (6, 0.2)):
            rows = slice(start, min(start + 3, 7))
            made = made.with_rows(rows, replace(method(weights[rows]), error=error))
        assert torch.equal(made.dequantize(), method(weights).dequantize())
        assert made.error == 0.3
