"""GGUF in: blocks without loss, rows put back in order, the tokenizer by its name, and damage told in a sentence."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import tiny_checkpoint
import tiny_gguf
from exporter.checkpoint import open_checkpoint
from exporter.errors import ExportError
from exporter.export import export
from exporter.gguf_file import GGUFTensor
from exporter.skeleton import whole_model
from handbill.manifest import Manifest


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_stand_for_what_ggml_dequantizes(kind: str) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(24, 96)).astype(np.float32)
    weights[3] = 0.0  # scale 0 in every format
    weights[4] = -1.5  # constant blocks: scale 0 and a minimum in Q4_1
    weights[5, :32] = 1e4
    quant = gguf.GGMLQuantizationType[kind]
    packed = gguf.quants.quantize(weights, quant)
    expected = gguf.quants.dequantize(packed, quant)
    blocks = GGUFTensor("t", kind, packed).blocks(None)
    assert blocks is not None
    np.testing.assert_array_equal(blocks.dequantize().numpy(), expected)
    assert kind != "Q4_1" or (torch.isfinite(blocks.scales).all() and (blocks.scales != 0).all())


def test_other_kinds_are_not_called_exact() -> None:
    packed = gguf.quants.quantize(np.ones((4, 32), np.float32), gguf.GGMLQuantizationType.Q5_0)
    tensor = GGUFTensor("t", "Q5_0", packed)
    assert tensor.blocks(None) is None
    assert tensor.weights().shape == (4, 32)


def test_weights_come_back_in_the_models_own_order(tmp_path: Path) -> None:
    expected = tiny_gguf.write(tmp_path / "tiny.gguf")
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)
    weights = checkpoint.weights
    exact = 0
    for name, parameter in whole_model(checkpoint.config, weights).named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=0)
        torch.testing.assert_close(weights.read(name, 3, 9), expected[name][3:9], rtol=0, atol=0)
        blocks = weights.blocks(name)
        if blocks is not None:
            torch.testing.assert_close(blocks.dequantize(), expected[name], rtol=0, atol=1e-6)
            exact += 1
    assert exact == 3 * 7 + 1


def test_export_of_a_gguf(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    target = export(str(tmp_path / "tiny.gguf"), tmp_path / "models", tmp_path / "cache")
    manifest = Manifest.from_json((target / "manifest.json").read_text("utf-8"))
    assert manifest.source.kind == "gguf" and len(manifest.source.revision) == 64
    assert manifest.quantization.method == "GGUF Q4_1, exact; embedding: GGUF Q8_0, exact"
    assert manifest.graphs == {"wasm": "model.onnx", "webgpu": "model-webgpu.onnx"}
    assert (manifest.title, manifest.licence.name, manifest.eos_ids) == ("Tiny", "cc0-1.0", [2])


def test_tokenizer_equals_the_one_it_was_made_from(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    built, own = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path).tokenizer, tiny_checkpoint.tokenizer()
    for text in ("The ferry left at 6.10", " two  spaces\n\n", "naïve — 漢字 🎈", "<s>user: hi</s>"):
        assert built.encode(text).ids == own.encode(text).ids


def test_smollm_splits_every_digit(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", pre="smollm")
    pieces = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path).tokenizer.pre_tokenizer.pre_tokenize_str("a 1234²")
    assert [piece for piece, _ in pieces] == ["a", "Ġ", "1", "2", "3", "4", "Â²"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[: len(data) // 2], "download it again"),
        (lambda data: data[:-100], "download it again"),
        (lambda data: data[:6], "version"),
        (lambda data: b"GGUF" + (9).to_bytes(4, "little") + data[8:], "GGUF version 9"),
        (lambda data: b"PK\x03\x04" + data[4:], "does not begin with GGUF"),
        (lambda _: b"", "does not begin with GGUF"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, damage: object, says: str) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "bad.gguf").write_bytes(damage(whole))  # type: ignore[operator]
    with pytest.raises(ExportError, match=says) as raised:
        open_checkpoint(str(tmp_path / "bad.gguf"), tmp_path)
    assert "bad.gguf" in str(raised.value)


def test_an_unknown_pre_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", pre="klingon")
    with pytest.raises(ExportError, match="'klingon'; known are"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)


def test_an_unknown_tokenizer_model_is_refused_by_name(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", tokenizer_model="bert")
    with pytest.raises(ExportError, match="kind 'bert'"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)
