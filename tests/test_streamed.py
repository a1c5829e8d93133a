"""A pass over the weights, a piece of a matrix at a time, is the whole model's forward, and its Blocks are the same."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny_checkpoint
import tiny_gguf
from exporter import streamed, verify, weights
from exporter.agreement import Floats, Measured, Predictions, Tally
from exporter.blocks import Blocks, round_to_nearest
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.skeleton import matrices, skeleton, whole_model
from exporter.store import Store
from exporter.streamed import Round, stream
from exporter.weights import Matrix

IDS = [int(i) for i in np.random.default_rng(0).integers(3, tiny_checkpoint.VOCABULARY, 90)]
KEPT = [3, *range(25, 80)]
"""Positions of which the logits are kept: one alone, and some over several slices."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces a matrix and several slices of logits, as a large model has them."""
    monkeypatch.setattr(weights, "PIECE", 5000)
    monkeypatch.setattr(streamed, "LOGITS", 20 * 2 * tiny_checkpoint.VOCABULARY)


def bits(matrix: Matrix) -> int:
    return 8 if matrix.is_table else 4


def nearest(matrix: Matrix, _: Tensor | None) -> Round:
    return partial(round_to_nearest, bits=bits(matrix))


def opened(name: str, tmp_path: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint.save(name, tmp_path / "tiny")), tmp_path)


def dequantized(checkpoint: Checkpoint) -> Any:
    """The whole eager model on what the Blocks of its matrices stand for."""
    model: Any = whole_model(checkpoint.config, checkpoint.weights)
    parameters = dict(model.named_parameters())
    for matrix in matrices(model, checkpoint.weights):
        parameter = parameters[matrix.name]
        parameter.copy_(round_to_nearest(parameter, bits(matrix)).dequantize())
    return model


# Final soft-capping, scaled logits, biases, a scaled embedding, partial rotary with biases, a head of its own.
@pytest.mark.parametrize(
    "name", ["gemma2", "granite-3-2b", "qwen2.5-0.5b", "gemma-3-270m", "phi-2", "tinyllama-1.1b-chat"]
)
def test_both_streams_are_the_whole_models(name: str, tmp_path: Path) -> None:
    checkpoint = opened(name, tmp_path)
    model = skeleton(checkpoint.config, checkpoint.weights)
    store = Store(tmp_path / "store")
    found = stream(model, checkpoint.weights, store, nearest, IDS, KEPT)
    with torch.no_grad():
        source = verify.eager_logits(whole_model(checkpoint.config, checkpoint.weights), IDS)
        expected = verify.eager_logits(dequantized(checkpoint), IDS)
    assert found.reference.shape == (len(KEPT), tiny_checkpoint.VOCABULARY)
    np.testing.assert_allclose(found.reference, expected[KEPT], atol=5e-5)
    assert np.abs(expected - source)[KEPT].max() > 1e-2  # so that the two streams cannot be taken for each other
    assert found.source == pytest.approx(tally(tmp_path / "source", source, source).perplexity, rel=1e-6)
    both = tally(tmp_path / "both", source, expected)
    assert found.quantized.perplexity == pytest.approx(both.perplexity, rel=1e-5)
    assert found.quantized.divergence == pytest.approx(both.divergence, rel=1e-2) and both.divergence > 1e-4
    assert found.quantized.agreement == pytest.approx(both.agreement, abs=0.03)
    for matrix in matrices(model, checkpoint.weights):
        whole = round_to_nearest(checkpoint.weights.read(matrix.name), bits(matrix))
        weights_read = checkpoint.weights.read(matrix.name)
        wrong = whole.dequantize() - weights_read
        assert_same(store.read(matrix.name), replace(whole, error=float(wrong.abs().max())))
        relative = wrong.norm() / weights_read.norm()
        assert found.errors[matrix.name] == pytest.approx(float(relative), rel=1e-4)
    assert len(store.forms()) == len(matrices(model, checkpoint.weights))


def tally(folder: Path, source: Floats, logits: Floats) -> Measured:
    """``logits`` on IDS against those of the source, all at once."""
    folder.mkdir()
    predictions = Predictions.create(folder, *source.shape)
    predictions.put(0, source)
    found = Tally(predictions, IDS)
    found.add(logits)
    return found.measured()


def assert_same(found: Blocks, expected: Blocks) -> None:
    for key, value in vars(expected).items():
        other = getattr(found, key)
        assert torch.equal(other, value) if isinstance(value, Tensor) else other == value, key


def test_nothing_large_is_read_or_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened("llama", tmp_path)
    model = skeleton(checkpoint.config, checkpoint.weights)
    sizes = []
    read = checkpoint.weights.read

    def spy(name: str, start: int = 0, stop: int | None = None) -> Tensor:
        sizes.append(read(name, start, stop).numel())
        return read(name, start, stop)

    monkeypatch.setattr(checkpoint.weights, "read", spy)
    before = {name: (parameter.shape, parameter.is_meta) for name, parameter in model.named_parameters()}
    stream(model, checkpoint.weights, Store(tmp_path / "store"), nearest, IDS, KEPT)
    assert max(sizes) <= weights.PIECE
    assert {name: (parameter.shape, parameter.is_meta) for name, parameter in model.named_parameters()} == before
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_a_method_sees_the_error_of_the_matrices_before(tmp_path: Path) -> None:
    """Inputs are those of the quantized stream: the text's tokens first, then the calibration's."""
    checkpoint = opened("llama", tmp_path)
    calibration = torch.randint(
        3, tiny_checkpoint.VOCABULARY, (2, len(IDS)), generator=torch.Generator().manual_seed(1)
    )
    seen: dict[str, Tensor | None] = {}

    def choose(matrix: Matrix, inputs: Tensor | None) -> Round:
        seen[matrix.name] = inputs
        return nearest(matrix, inputs)

    model = skeleton(checkpoint.config, checkpoint.weights)
    found = stream(model, checkpoint.weights, Store(tmp_path / "store"), choose, IDS, KEPT, calibration)
    inputs: dict[str, Tensor] = {}
    reference = dequantized(checkpoint)
    for name, module in reference.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({f"{name}.weight": args[0]}))
    with torch.no_grad():
        logits = reference(torch.cat([torch.tensor([IDS]), calibration]), use_cache=False).logits
    assert seen.pop("model.embed_tokens.weight") is None
    assert set(seen) == set(inputs) - {"lm_head.weight"}
    for name, value in seen.items():
        assert value is not None
        torch.testing.assert_close(value, inputs[name].flatten(0, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.reference, logits[0, KEPT].numpy(), atol=5e-5)


def test_what_goes_in_without_loss_is_not_rounded(tmp_path: Path) -> None:
    stands_for = tiny_gguf.write(tmp_path / "tiny.gguf")
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)

    def never(matrix: Matrix, _: Tensor | None) -> Round:
        raise AssertionError(matrix.name)

    store = Store(tmp_path / "store")
    model = skeleton(checkpoint.config, checkpoint.weights)
    found = stream(model, checkpoint.weights, store, never, IDS, KEPT)
    assert found.quantized == Measured(found.source, 0.0, 1.0) and not found.errors
    for name, blocks in store.forms().items():
        assert blocks.method.endswith("exact")
        assert blocks.codes.is_meta
        torch.testing.assert_close(store.read(name).dequantize(), stands_for[name], rtol=0, atol=1e-6)
    expected = verify.eager_logits(whole_model(checkpoint.config, checkpoint.weights), IDS)
    np.testing.assert_allclose(found.reference, expected[KEPT], atol=5e-5)


def test_a_store_keeps_blocks_as_they_are(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    made = round_to_nearest(torch.randn(6, 70), 4)
    assert "a.weight" not in store
    store.write("a.weight", made)
    assert "a.weight" in store
    assert_same(Store(tmp_path / "store").read("a.weight"), made)
    form = store.forms()["a.weight"]
    assert (form.rows, form.columns, form.bytes, form.error) == (made.rows, made.columns, made.bytes, made.error)


def test_progress_counts_what_the_text_went_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix once, and lm_head once a slice of the text's logits: the bar ends where it said it would."""
    from contextlib import contextmanager

    counted: list[int] = []

    @contextmanager
    def watched(_: str, total: int, __: str) -> Any:
        bar = type("Bar", (), {"update": staticmethod(counted.append)})
        yield bar
        assert sum(counted) == total

    monkeypatch.setattr(streamed, "stage", watched)
    for name in ("llama", "tinyllama-1.1b-chat"):
        counted.clear()
        checkpoint = opened(name, tmp_path / name)
        model = skeleton(checkpoint.config, checkpoint.weights)
        stream(model, checkpoint.weights, Store(tmp_path / name / "store"), nearest, IDS, KEPT)
        head = tiny_checkpoint.VOCABULARY * checkpoint.config.hidden_size
        assert sum(counted) == sum(m.rows * m.columns for m in matrices(model, checkpoint.weights)) + head * (
            5 if name == "llama" else 4
        )
