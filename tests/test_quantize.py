"""The methods: each against what it promises to be better at, on weights and inputs with real structure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exporter.blocks import round_to_nearest
from exporter.gptq import Compensation
from exporter.grid import min_max, search, split
from exporter.hqq import NORM, half_quadratic
from exporter.quantize import SMALL, Choice, Chooser
from exporter.weights import Matrix


def weights(rows: int = 48, columns: int = 96, seed: int = 0) -> Tensor:
    """Heavy-tailed, as trained weights are."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    return normal * torch.randn(rows, columns, generator=generator).abs().add(0.3)


def inputs(columns: int = 96, tokens: int = 400, seed: int = 1) -> Tensor:
    """Correlated channels of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, columns // 3, generator=generator) @ torch.randn(
        columns // 3, columns, generator=generator
    )
    return (mixed + torch.randn(tokens, columns, generator=generator)) * torch.logspace(-1, 1, columns)


def test_a_grids_nearest_codes_are_those_of_rounding() -> None:
    """One rule in two places: Grid for the methods, round_to_nearest for whole matrices."""
    for bits in (4, 8):
        plain, w = round_to_nearest(weights(columns=90), bits), weights(columns=90)
        grid = min_max(split(w), bits)
        made = grid.pack(grid.codes(split(w)), 90, "round to nearest")
        assert made.method == plain.method and made.form == plain.form
        assert torch.equal(made.dequantize(), plain.dequantize())


def test_half_quadratic_lowers_the_norm_that_it_is_for() -> None:
    w = weights()
    plain, better = (
        (split(w - f.dequantize())).abs().pow(NORM).sum(-1) for f in (round_to_nearest(w, 4), half_quadratic(w, 4))
    )
    assert (better <= plain * (1 + 1e-5)).all()
    assert better.sum() < 0.97 * plain.sum()


def test_search_clips_where_that_pays() -> None:
    w, importance = weights(), split(inputs().square().mean(0)[None])
    losses = [
        ((split(w) - grid.values(grid.codes(split(w)))).square() * importance).sum(-1)
        for grid in (min_max(split(w), 4), search(split(w), 4, importance))
    ]
    assert (losses[1] <= losses[0]).all()
    assert losses[1].sum() < 0.95 * losses[0].sum()


def test_gptq_lowers_the_error_of_outputs() -> None:
    w, x = weights(), inputs()
    made = Compensation(x).quantize(w, 4)
    grid = search(split(w), 4, split(x.square().mean(0)[None]))
    nearest = grid.values(grid.codes(split(w))).flatten(1)

    def loss(found: Tensor) -> float:
        return float((x @ (found - w).T).square().mean())

    assert loss(made.dequantize()) < 0.5 * loss(nearest)
    fresh = inputs(seed=7)  # the same statistics are not needed for it to help, but they should not hurt
    assert torch.isfinite(fresh @ made.dequantize().T).all()


def test_gptq_on_unrelated_inputs_is_rounding() -> None:
    """With a diagonal Hessian there is nothing that another column could make good."""
    x = torch.eye(96) * torch.logspace(0, 1, 96)
    made = Compensation(x)
    grid = min_max(split(weights()), 4)
    assert torch.equal(made.codes(weights(), grid), grid.codes(split(weights())).flatten(1))


@pytest.mark.parametrize("columns", [96, 90])
def test_gptq_takes_rows_apart(columns: int) -> None:
    """The exporter quantizes a matrix piece by piece."""
    w, made = weights(columns=columns), Compensation(inputs(columns=96)[:, :columns])
    whole = made.quantize(w, 4).dequantize()
    parts = torch.cat([made.quantize(part, 4).dequantize() for part in w.split(20)])
    assert torch.allclose(parts, whole, atol=1e-6)


def test_inputs_that_never_occur_do_no_harm() -> None:
    x = inputs()
    x[:, 5] = 0
    made = Compensation(x).quantize(weights(), 4)
    assert (made.dequantize() - weights()).abs().max() < 2.0  # and a number


def test_bits_of_a_table_by_the_models_size() -> None:
    """8 bits up to a billion parameters; above 4, without zero points where weights are rounded to nearest."""
    table, layer = (Matrix(name, 64, 64, name == "table", None) for name in ("table", "layer"))  # type: ignore[arg-type]
    choice = Choice()
    assert [choice.bits_of(matrix, SMALL) for matrix in (table, layer)] == [8, 4]
    assert [choice.bits_of(matrix, SMALL + 1) for matrix in (table, layer)] == [4, 4]
    assert [Choice(bits=8).bits_of(matrix, SMALL + 1) for matrix in (table, layer)] == [8, 8]
    weights = torch.randn(64, 64)
    chooser = Chooser("rtn", {"table": 4, "layer": 4}, 0)
    found = {matrix.name: chooser(matrix, None if matrix is table else weights)(weights) for matrix in (table, layer)}
    assert found["table"].zeros is None and found["layer"].zeros is not None
    assert 8 * found["table"].bytes / 64**2 == 4.5
