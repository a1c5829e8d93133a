"""What looks at a whole model: AWQ leaves what it computes alone, effects foretell divergence, a budget is kept."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_checkpoint
from exporter import awq, calibration
from exporter.awq import Scaled, scale
from exporter.blocks import round_to_nearest
from exporter.calibration import Group
from exporter.errors import ExportError
from exporter.quantize import Choice, Fitting
from exporter.sensitivity import effects, spend
from exporter.skeleton import matrices, whole_model
from exporter.weights import Matrix, Safetensors

TEXT = torch.randint(3, tiny_checkpoint.VOCABULARY, (4, 80), generator=torch.Generator().manual_seed(5))


def nothing(_: int) -> None:
    """A report that nobody reads."""


def opened(name: str, folder: Path) -> tuple[Any, Safetensors]:
    weights = Safetensors(tiny_checkpoint.save(name, folder / name))
    return whole_model(tiny_checkpoint.config(name), weights), weights


NAMES = ["llama", "gemma", "gemma2", "gemma-3-270m", "phi-2", "phi-4-mini", "qwen2.5-0.5b", "qwen3-0.6b", "olmo-2-1b"]


# Norms that store their weight less 1, four norms a layer, partial rotary with one LayerNorm for attention and MLP,
# q and k with norms of their own, norms after instead of before, fused projections, biases.
@pytest.mark.parametrize("name", NAMES)
def test_awq_scales_without_changing_the_model(name: str, tmp_path: Path) -> None:
    model, weights = opened(name, tmp_path)
    found = scale(model, weights, TEXT, nothing)
    assert found.columns, "something is scaled"
    if name not in ("olmo-2-1b", "phi-2"):
        assert any("q_proj" in key or "qkv_proj" in key for key in found.columns) and found.norms
    found.save(tmp_path / "scales")
    scaled = whole_model(tiny_checkpoint.config(name), Scaled.open(weights, tmp_path / "scales"))
    with torch.no_grad():
        wanted, made = (each(TEXT, use_cache=False).logits for each in (model, scaled))
    assert (made - wanted).abs().max() < 2e-5 * wanted.abs().max()
    for key, scales in found.columns.items():
        assert scales.max() / scales.min() > 1.01 or torch.equal(scales, torch.ones_like(scales)), key


def test_awq_gives_large_inputs_a_finer_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(64, 64, generator=generator)
    x = torch.randn(500, 64, generator=generator)
    x[:, 9] *= 50
    group = Group(["q_proj"], "norm", x.T @ x / 500, x.abs().mean(0))
    scales = awq._search(weights, group)
    assert scales.argmax() == 9 and scales[9] > 3 * scales.median()

    def loss(factor: Tensor) -> float:
        error = round_to_nearest(weights * factor, 4).dequantize() / factor - weights
        return float((x @ error.T).square().mean())

    assert loss(scales) < 0.5 * loss(torch.ones(64))


def test_groups_are_what_reads_one_tensor(tmp_path: Path) -> None:
    model, _ = opened("llama", tmp_path)
    (first, *others) = list(calibration.groups(model, TEXT, nothing))
    assert len(others) == 2
    layer = "model.layers.0"
    assert [(group.linears, group.norm) for group in first] == [
        ([f"{layer}.self_attn.{part}_proj" for part in "qkv"], f"{layer}.input_layernorm"),
        ([f"{layer}.self_attn.o_proj"], ""),
        ([f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"], f"{layer}.post_attention_layernorm"),
        ([f"{layer}.mlp.down_proj"], ""),
    ]
    seen: list[Tensor] = []
    model.model.layers[2].mlp.down_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
    with torch.no_grad():
        model(TEXT, use_cache=False)
    (x,) = seen
    last = others[-1][-1]
    assert last.tokens == TEXT.numel()
    torch.testing.assert_close(last.hessian, x.T @ x / len(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(last.magnitude, x.abs().mean(0), rtol=1e-3, atol=1e-4)


def divergence(model: Any, parameter: Tensor, wanted: Tensor) -> float:
    """KL divergence in nats a token that rounding one parameter causes, measured."""
    before = parameter.clone()
    parameter.copy_(round_to_nearest(parameter, 4).dequantize())
    found = model(TEXT, use_cache=False).logits.log_softmax(-1)
    parameter.copy_(before)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_effects_foretell_divergence(tmp_path: Path) -> None:
    model, weights = opened("llama-3-8b", tmp_path)
    found = effects(model, TEXT, nothing)
    assert set(found) == {matrix.name for matrix in matrices(model, weights)}
    with torch.no_grad():
        wanted = model(TEXT, use_cache=False).logits.log_softmax(-1)
        measured = {name: divergence(model, model.get_parameter(name), wanted) for name in found}
    ratios = torch.tensor([found[name] / measured[name] for name in found])
    assert (ratios > 1 / 3).all() and (ratios < 3).all(), dict(zip(found, ratios.tolist(), strict=True))
    ranks = torch.tensor([list(found.values()), list(measured.values())]).argsort().argsort().float()
    assert torch.corrcoef(ranks)[0, 1] > 0.8
    assert not any(parameter.grad is not None for parameter in model.parameters())


def sizes(*shapes: tuple[str, int, int]) -> list[Matrix]:
    return [Matrix(name, rows, columns, False, None) for name, rows, columns in shapes]  # type: ignore[arg-type]


LAYER = sizes(
    ("a.q_proj.weight", 64, 64), ("a.k_proj.weight", 32, 64), ("a.v_proj.weight", 32, 64), ("b.weight", 64, 64)
)


def stored(bits: dict[str, int]) -> float:
    """Bits a weight of LAYER, from real Blocks."""
    made = [round_to_nearest(torch.randn(matrix.rows, matrix.columns), bits[matrix.name]) for matrix in LAYER]
    return 8 * sum(part.bytes for part in made) / sum(part.rows * part.columns for part in made)


def test_a_budget_goes_where_it_saves_most_a_byte() -> None:
    effect = {"a.q_proj.weight": 1.0, "a.k_proj.weight": 1.0, "a.v_proj.weight": 0.0, "b.weight": 1.5}
    least = stored(dict.fromkeys(effect, 4))
    assert set(spend(LAYER, effect, least + 1e-6).values()) == {4}
    bits = spend(LAYER, effect, least + 1.4)  # b costs half of q, k and v, which go together
    assert bits == {"a.q_proj.weight": 4, "a.k_proj.weight": 4, "a.v_proj.weight": 4, "b.weight": 8}
    assert stored(bits) <= least + 1.4
    bits = spend(LAYER, effect | {"b.weight": 0.5}, least + 2.7)
    assert bits == {"a.q_proj.weight": 8, "a.k_proj.weight": 8, "a.v_proj.weight": 8, "b.weight": 4}
    assert set(spend(LAYER, effect, 8.5).values()) == {8}


def test_a_budget_that_cannot_be_kept() -> None:
    with pytest.raises(ExportError, match=r"4\.625 bits a weight is the least"):
        spend(LAYER, dict.fromkeys((matrix.name for matrix in LAYER), 1.0), 4.5)


@pytest.mark.parametrize("choice", [Choice("awq"), Choice("rtn", budget=5.5)])
def test_the_whole_model_is_gone_before_the_stream(
    choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in float32, and memory would hold it beside everything that comes after."""
    made: list[weakref.ref[Any]] = []

    def remembered(*arguments: Any) -> Any:
        model = whole_model(*arguments)
        made.append(weakref.ref(model))
        return model

    def stream(*_: Any) -> bool:
        return [model() for model in made] == [None]

    monkeypatch.setattr("exporter.quantize.whole_model", remembered)
    monkeypatch.setattr("exporter.quantize.stream", stream)
    weights = Safetensors(tiny_checkpoint.save("llama", tmp_path / "llama"))
    assert Fitting(choice, tiny_checkpoint.config("llama"), weights, TEXT).run([3, 4], [1], tmp_path)


def test_a_calibration_text_is_cut_into_sequences() -> None:
    assert calibration.sequences(range(1000), 300).tolist()[2] == list(range(600, 900))
    assert calibration.sequences(range(300), 512).shape == (1, 512)
    assert calibration.sequences(range(1000), 300, [7]).tolist()[2] == [7, *range(598, 897)]
    assert calibration.sequences(range(100_000), 1000).numel() <= calibration.TOKENS
    with pytest.raises(ExportError, match="has 99 tokens"):
        calibration.sequences(range(99), 50)
