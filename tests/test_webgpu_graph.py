"""exporter/webgpu.py: the graph for WebGPU computes natively what the one that it is made of computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import kernel_graph
import tiny_checkpoint
import tiny_exports
from exporter import webgpu
from exporter.graph import load
from exporter.native import NativeSession
from handbill.manifest import NAME, KVLayout, Manifest
from kernel_graph import Shape

SHAPES = {
    "packed": Shape(softcap=0.4),
    "alone": Shape(softcap=0.4, head_norm=True, kv_heads=1, zeros="packed"),
    "every head": Shape(softcap=0.4, kv_heads=4, zeros="none"),
    "window": Shape(softcap=0.4, window=24),
    "half a head": Shape(softcap=0.4, rotary=0.5),
    "no positions": Shape(softcap=0.4, rotary=0.0),
}
STEPS = [3, 40, 1, 1, 9, 1]


@pytest.mark.parametrize("name", SHAPES)
def test_soft_caps_outside_of_the_operator_are_the_same(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    path = kernel_graph.build(tmp_path, shape)
    model = load(path)
    assert webgpu.cap_scores(model) == shape.layers
    assert not any(item.name == "softcap" for node in model.graph.node for item in node.attribute)
    rewritten = path.with_name("model-webgpu.onnx")
    onnx.save(model, str(rewritten))
    kv = KVLayout("float32", shape.layers, shape.kv_heads, shape.head_dim)
    sessions = [NativeSession(each, kv, shape.context, threads=1) for each in (path, rewritten)]
    ids = np.random.default_rng(0).integers(0, shape.vocabulary, sum(STEPS)).tolist()
    for end, size in zip(np.cumsum(STEPS), STEPS, strict=True):
        ours, wanted = (session.logits(ids[end - size : end], size) for session in reversed(sessions))
        np.testing.assert_allclose(ours, wanted, atol=2e-5)
    for session in sessions:
        session.rewind(10)
    ours, wanted = (session.logits(ids[:5], 5) for session in reversed(sessions))
    np.testing.assert_allclose(ours, wanted, atol=2e-5)


def test_soft_caps_copy_the_keys_of_every_layer_at_every_token_and_no_values() -> None:
    """What webgpu.md says that they cost: a Slice of the past keys and a Concat with the new ones, each as long as all
    of the conversation."""
    folder = tiny_exports.exported("gemma2")
    layers = Manifest.from_json((folder / NAME).read_text("utf-8")).kv.layers
    nodes = load(folder / "model-webgpu.onnx").graph.node
    copied = {node.input[0]: node.output[0] for node in nodes if node.op_type == "Slice"}
    assert set(copied) == {f"past_key_values.{layer}.key" for layer in range(layers)}
    joined = [node.output[0] for node in nodes if node.op_type == "Concat" and node.input[0] in copied.values()]
    assert len(joined) == layers
    scored = [node.op_type for node in nodes if set(node.input) & set(joined)]
    assert scored == ["MatMul"] * layers


def test_what_has_neither_soft_caps_nor_two_tables_is_left_as_it_is(tmp_path: Path) -> None:
    model = load(kernel_graph.build(tmp_path, Shape()))
    before = model.SerializeToString()
    assert webgpu.cap_scores(model) + webgpu.choose_tables(model) == 0
    assert model.SerializeToString() == before


def test_longrope_is_chosen_on_the_device() -> None:
    """Nothing reads the length that the processor holds but attention itself, which sizes its work by it."""
    graph = load(tiny_exports.exported("phi-4-mini") / "model-webgpu.onnx").graph
    readers = {node.op_type for node in graph.node if "total_sequence_length" in node.input}
    assert readers == {"GroupQueryAttention"}
    (past,) = {node.input[0] for node in graph.node if node.op_type == "Greater"}
    assert past == "seqlens_k"


@pytest.mark.parametrize("tokens", [tiny_checkpoint.SWITCH, tiny_checkpoint.SWITCH + 1])
def test_longrope_turns_past_the_switch_and_not_before(tokens: int) -> None:
    folder = tiny_exports.exact("phi-4-mini")
    ours, wanted = (
        NativeSession.open(folder, threads=1, graph=graph).logits(range(3, 3 + tokens), tokens)
        for graph in ("webgpu", "wasm")
    )
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
