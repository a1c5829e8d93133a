"""GGUF in: blocks without loss, architectures as they were, and what cannot be read told in a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import cpu_session
import tiny_checkpoint
import tiny_gguf
import tiny_gguf_families
from exporter import gguf_blocks, graph
from exporter.checkpoint import open_checkpoint
from exporter.errors import ExportError
from exporter.estimate import estimate
from exporter.export import export
from exporter.gguf_file import GGUFTensor, GGUFWeights
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


@pytest.mark.parametrize("family", tiny_gguf_families.FAMILIES)
def test_every_architecture_is_the_model_it_was(family: str, tmp_path: Path) -> None:
    """Names, row order, norms, biases, windows, caps, scales and rotary: eager torch says the very same logits."""
    tiny_gguf.write(tmp_path / "tiny.gguf", ["F32"], family, table="F32")
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)
    ids = torch.randint(0, 512, (1, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        read, made = whole_model(checkpoint.config, checkpoint.weights), tiny_gguf_families.model(family)
        found, expected = (each(ids).logits for each in (read, made))
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
    _, (answer,) = cpu_session.run(target, [{"ids": ids, "positions": 16, "logits": True}])
    # 13 bits of keys and values move this random model's logits by less than a thousandth; a fault does by far more.
    assert np.linalg.norm(answer.logits - expected) / np.linalg.norm(expected) < 1e-3


# Rows in another order and scaled frequencies, norms less 1, fused matrices and two rotary tables, norms with biases:
# what a family's GGUF has that its checkpoint has not. The graphs themselves are test_export_architectures' business.
@pytest.mark.parametrize("family", ["llama3", "gemma3", "phi3-longrope", "stablelm"])
def test_families_go_through_the_whole_exporter(family: str, tmp_path: Path) -> None:
    """Blocks of every size that their few columns allow, and floats, mixed in one file, up to gate and report."""
    kinds = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16"]
    tiny_gguf.write(tmp_path / "tiny.gguf", kinds, family)
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)
    target = export(str(tmp_path / "tiny.gguf"), tmp_path / "models", tmp_path, context=tiny_checkpoint.CONTEXT)
    manifest = Manifest.from_json((target / "manifest.json").read_text("utf-8"))
    checked = manifest.verification
    assert max(checked.prefill, checked.chunked, checked.decode) <= checked.allowed == TOLERANCE
    assert checked.tokens == 256
    stored = dict(re.findall(r'<td class="name">(\S+)</td>.*?<td>([^<]+)</td>', report_of(target), re.DOTALL))
    expected = {}
    for matrix in matrices(skeleton(checkpoint.config, checkpoint.weights), checkpoint.weights):
        blocks = matrix.blocks()
        expected[matrix.name] = "GPTQ, 4 bit" if blocks is None else blocks.method
    assert stored == expected
    assert set(expected.values()) == {"GPTQ, 4 bit", *(f"GGUF {kind}, exact" for kind in kinds[:-1])}


def report_of(folder: Path) -> str:
    """The part of an export's report that lists its matrices."""
    return (folder / "report.html").read_text("utf-8").partition("Every matrix")[2]


def test_what_the_architecture_does_not_have_is_refused(tmp_path: Path) -> None:
    """StableLM 2 12B has norms of q that its 1.6B, and the config of both, know nothing of."""
    tiny_gguf.write(tmp_path / "tiny.gguf", more_tensors=["blk.0.attn_q_norm.weight", "blk.1.attn_q_norm.weight"])
    with pytest.raises(ExportError, match=r"tiny.gguf holds blk.0.attn_q_norm.weight and 1 more, which a model of its"):
        export(str(tmp_path / "tiny.gguf"), tmp_path / "models", tmp_path)
    tiny_gguf.write(tmp_path / "tiny.gguf", more_tensors=["blk.0.attn_rot_embd.weight"])
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)
    skeleton(checkpoint.config, checkpoint.weights)


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
def test_an_untied_head_with_minima_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    """It is multiplied with, and not looked up, as an embedding is."""
    tiny_gguf.write(tmp_path / "tiny.gguf", [kind], "qwen3")
    target = export(str(tmp_path / "tiny.gguf"), tmp_path / "models", tmp_path)
    manifest = Manifest.from_json((target / "manifest.json").read_text("utf-8"))
    assert manifest.quantization.method == f"GGUF {kind}, exact; embedding: GGUF Q8_0, exact"
    assert manifest.plan == "plan.json"
    weights = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path).weights
    assert isinstance(weights, GGUFWeights)
    found = estimate(weights.config, form=weights.first_row)
    assert round(found.bits_per_weight, 4) == manifest.quantization.bits_per_weight


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


def test_what_is_refused_is_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That would read gigabytes, to say what the head of the file already says."""
    hashed: list[Path] = []
    monkeypatch.setattr("exporter.fetch.sha256", lambda path: hashed.append(path) or "0" * 64)
    tiny_gguf.write(tmp_path / "tiny.gguf", architecture="mamba")
    with pytest.raises(ExportError, match="architecture 'mamba'"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)
    assert hashed == []
    tiny_gguf.write(tmp_path / "tiny.gguf")
    assert open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path).source.revision == "0" * 64


def test_an_unknown_quant_is_refused_by_name(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", ["Q4_K", "TQ2_0"], "llama-wide")
    with pytest.raises(ExportError, match=r"stores blk\.\S+ as TQ2_0, which cannot be read .Q4_0, "):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("llama", {"divisors": np.linspace(1, 3, 8, dtype=np.float32)}, "in a way that is not Llama 3's"),
        ("phi3-longrope", {"metadata": {"rope.scaling.attn_factor": 1.5}}, "in a way that is not Phi-3's longrope"),
        ("phi3-longrope", {"metadata": {"rope.dimension_count": 8}}, "in a way that is not Phi-3's longrope"),
        ("phi3", {"more_tensors": ["rope_factors_long.weight"]}, "in a way that is not Phi-3's longrope"),
        ("llama", {"more_tensors": ["rope_factors_long.weight"]}, "in a way that is not Phi-3's longrope"),
    ],
)
def test_other_rotary_scaling_is_refused(family: str, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", family=family, **changes)
    with pytest.raises(ExportError, match=says):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)
