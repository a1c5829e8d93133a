"""Every architecture with a recipe goes through the whole exporter on a tiny model of its real structure."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_checkpoint
from exporter.export import export
from exporter.graph import attributes, load
from exporter.verify import TOLERANCE
from handbill.manifest import Manifest


@pytest.mark.parametrize("name", tiny_checkpoint.ARCHITECTURES)
def test_agrees_with_eager_torch(name: str, tmp_path: Path) -> None:
    """verify runs inside export: prefill and cached decode over 256 tokens, five times the longest window here."""
    folder = tiny_checkpoint.save(name, tmp_path / name)
    target = export(str(folder), tmp_path / "models", tmp_path / "cache")
    manifest = Manifest.from_json((target / "manifest.json").read_text("utf-8"))
    assert manifest.verification.tokens == 256
    measured = manifest.verification
    assert max(measured.prefill, measured.chunked, measured.decode) <= TOLERANCE
    assert manifest.chat_template == tiny_checkpoint.TEMPLATE
    assert manifest.eos_ids == [2]
    model = load(target / manifest.graphs["wasm"])
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("GroupQueryAttention") == 3
    assert not {"MatMul", "Softmax", "Where", "Cos", "Sin"} & set(kinds)
    assert all(attributes(node)["accuracy_level"] == 4 for node in model.graph.node if node.op_type == "MatMulNBits")


def test_window_softcap_and_scale_reach_the_operator(tmp_path: Path) -> None:
    folder = tiny_checkpoint.save("gemma2", tmp_path / "gemma2")
    target = export(str(folder), tmp_path / "models", tmp_path / "cache")
    found = [attributes(n) for n in load(target / "model.onnx").graph.node if n.op_type == "GroupQueryAttention"]
    assert [each["local_window_size"] for each in found] == [48, -1, 48]
    assert {round(each["softcap"], 6) for each in found} == {2.0}
    assert {round(each["scale"], 6) for each in found} == {round(24**-0.5, 6)}


def test_gemma_keeps_one_embedding(tmp_path: Path) -> None:
    """The code path of `gemma-2b`: head_dim 256, one KV head, tied embedding stored once."""
    folder = tiny_checkpoint.save("gemma", tmp_path / "gemma")
    target = export(str(folder), tmp_path / "models", tmp_path / "cache")
    graph = load(target / "model.onnx").graph
    shared = [t for t in graph.initializer if t.name.endswith("codes") or "Reshape" in t.name]
    places = [
        tuple((e.key, e.value) for e in t.external_data) for t in shared if t.dims[0] == tiny_checkpoint.VOCABULARY
    ]
    assert len(places) == 2 and len(set(places)) == 1
