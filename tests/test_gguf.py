"""GGUF in: blocks without loss, architectures as they were, and what cannot be read told in a sentence."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import cpu_session
import tiny_gguf
from exporter import gguf_blocks, graph
from exporter.checkpoint import open_checkpoint
from exporter.errors import ExportError
from exporter.export import export
from exporter.gguf_file import GGUFTensor
from exporter.native import NativeSession
from exporter.skeleton import matrices, skeleton, whole_model
from exporter.verify import TOLERANCE
from handbill.manifest import Manifest


@pytest.mark.parametrize("kind", gguf_blocks.EXACT)
def test_blocks_are_bit_for_bit_what_ggml_dequantizes(kind: str) -> None:
    quant = gguf.GGMLQuantizationType[kind]
    weights = np.random.default_rng(0).normal(size=(24, 1024)).astype(np.float32)
    weights[3] = 0.0  # scale 0 in every format
    weights[4] = -1.5  # constant blocks: scale 0 and a minimum in Q4_1 and Q5_1
    weights[5, :32] = 1e4
    packed = tiny_gguf.pack(kind, weights, seed=0)
    if kind in ("Q4_K", "Q5_K"):
        size = gguf.GGML_QUANT_SIZES[quant][1]
        packed[0, 4:16] = 0  # blocks without scale or minimum
        packed[1, 4:8] = 0  # blocks without scale, with a minimum
        packed[2, 0:2] = 0  # a superblock without scale
        packed[3, 0:4] = 0  # nor minimum
        packed[4, size : size + 2] = np.array([-0.01], np.float16).view(np.uint8)
    blocks = gguf_blocks.read(kind, packed)
    assert blocks is not None
    np.testing.assert_array_equal(blocks.dequantize().numpy(), gguf.quants.dequantize(packed, quant))
    assert blocks.method == f"GGUF {kind}, exact" and blocks.error == 0.0
    if blocks.minima is not None:  # the operators divide by the scale
        assert torch.isfinite(blocks.block_minima() / blocks.block_scales()).all()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blocks.take_rows(order).dequantize(), blocks.dequantize()[order])


@pytest.mark.parametrize(
    ("kind", "bits"),
    {"Q4_0": 4.5, "Q4_1": 5, "Q5_0": 8.5, "Q5_1": 9, "Q8_0": 8.5, "Q4_K": 4.625, "Q5_K": 8.625, "Q6_K": 8.5625}.items(),
)
def test_what_a_weight_costs(kind: str, bits: float) -> None:
    blocks = gguf_blocks.read(kind, tiny_gguf.pack(kind, np.ones((8, 512), np.float32), seed=0))
    assert blocks is not None and blocks.bytes * 8 == bits * 8 * 512


def test_float_kinds_have_no_exact_form() -> None:
    packed = gguf.quants.quantize(np.ones((4, 32), np.float32), gguf.GGMLQuantizationType.BF16)
    tensor = GGUFTensor("t", "BF16", packed)
    assert tensor.blocks(None) is None
    assert torch.equal(tensor.weights(), torch.ones(4, 32))


@pytest.mark.parametrize("family", tiny_gguf.FAMILIES)
def test_every_architecture_is_the_model_it_was(family: str, tmp_path: Path) -> None:
    """Names, row order, norms, biases, windows, caps, scales and rotary: eager torch says the very same logits."""
    tiny_gguf.write(tmp_path / "tiny.gguf", ["F32"], family, table="F32")
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)
    ids = torch.randint(0, 512, (1, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = (
            each(ids).logits for each in (whole_model(checkpoint.config, checkpoint.weights), tiny_gguf.model(family))
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


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
            torch.testing.assert_close(blocks.dequantize(), expected[name], rtol=0, atol=0)
            exact += 1
    assert exact == 2 * 7 + 1


def test_export_of_a_gguf(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    target = export(str(tmp_path / "tiny.gguf"), tmp_path / "models", tmp_path / "cache")
    manifest = Manifest.from_json((target / "manifest.json").read_text("utf-8"))
    assert manifest.source.kind == "gguf" and len(manifest.source.revision) == 64
    assert manifest.quantization.method == "GGUF Q4_1, exact; embedding: GGUF Q8_0, exact"
    assert manifest.graphs == {"wasm": "model.onnx", "webgpu": "model-webgpu.onnx"}
    assert (manifest.title, manifest.licence.name, manifest.eos_ids) == ("Tiny", "cc0-1.0", [2])


def test_a_mixed_file_runs_on_both_runtimes(tmp_path: Path) -> None:
    """Every format in one file: the gate compares native ONNX Runtime with torch, and the CPU kernels run the plan."""
    kinds = [kind for kind in gguf_blocks.EXACT if kind != "Q4_0"]
    tiny_gguf.write(tmp_path / "tiny.gguf", [*kinds, "Q4_0"], "llama-wide", table="Q6_K")  # 8 kinds over 7 matrices
    target = export(str(tmp_path / "tiny.gguf"), tmp_path / "models", tmp_path / "cache")
    manifest = Manifest.from_json((target / "manifest.json").read_text("utf-8"))
    *methods, embedding = manifest.quantization.method.split("; ")
    assert set(methods) == {f"GGUF {kind}, exact" for kind in gguf_blocks.EXACT}
    assert embedding == "embedding: GGUF Q6_K, exact"
    assert max(manifest.verification.prefill, manifest.verification.decode) <= TOLERANCE
    model = graph.load(target / manifest.graphs["wasm"])
    graph.set_accuracy_level(model, 0)
    (target / "exact.onnx").write_bytes(model.SerializeToString())
    ids = np.random.default_rng(1).integers(0, 512, 60).tolist()
    session = NativeSession(target / "exact.onnx", manifest.kv, 64)
    expected = session.logits(ids, 16)
    session.close()
    _, (answer,) = cpu_session.run(target, [{"ids": ids, "positions": 16, "logits": True}], build="plain")
    # An int8 KV cache moves this random model's logits by two per cent; a fault does by far more.
    assert np.linalg.norm(answer.logits - expected) / np.linalg.norm(expected) < 0.03


def test_an_embedding_with_minima_is_rounded_anew(tmp_path: Path) -> None:
    """No operator reads one: such a matrix, and only it, does not come as the Blocks that it is."""
    tiny_gguf.write(tmp_path / "tiny.gguf", ["Q4_K"], "llama-wide", table="Q4_K")
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)
    found = matrices(skeleton(checkpoint.config, checkpoint.weights), checkpoint.weights)
    assert [matrix.name for matrix in found if matrix.blocks() is None] == ["model.embed_tokens.weight"]


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


def test_a_split_model_is_read_whole_from_any_part(tmp_path: Path) -> None:
    expected = tiny_gguf.write(tmp_path / "tiny.gguf")
    parts = tiny_gguf.split(tmp_path / "tiny.gguf", 3)
    (tmp_path / "tiny.gguf").unlink()
    for part in parts:
        checkpoint = open_checkpoint(str(part), tmp_path)
        model = whole_model(checkpoint.config, checkpoint.weights)
        assert all(torch.equal(value, expected[name]) for name, value in model.named_parameters())
    parts[1].unlink()
    with pytest.raises(ExportError, match=r"is one of 3 files, and tiny-00002-of-00003\.gguf is not beside it"):
        open_checkpoint(str(parts[0]), tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"expert_count": 8}, "a mixture of experts is not supported"),
        ({"rope.dimension_count": 8}, "rotary over 8 of 16 channels of a head is not supported"),
        ({"attention.head_count_kv": [1, 2]}, "attention.head_count_kv differs from layer to layer"),
    ],
)
def test_what_a_config_cannot_say_is_refused(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", metadata=changes)
    with pytest.raises(ExportError, match=says):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", architecture="mamba")
    with pytest.raises(ExportError, match=r"architecture 'mamba', which cannot be read from a GGUF .llama, gemma"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)


def test_an_unknown_quant_is_refused_by_name(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", ["Q4_K", "TQ2_0"], "llama-wide")
    with pytest.raises(ExportError, match=r"stores blk\.\S+ as TQ2_0, which cannot be read .Q4_0, "):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)


def test_other_rotary_scaling_than_llamas_is_refused(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", divisors=np.linspace(1, 3, 8, dtype=np.float32))
    with pytest.raises(ExportError, match="in a way that is not Llama 3's"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)
