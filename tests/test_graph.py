"""Graph passes: the forms of one product agree, and tensors are stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import tiny_gguf
from exporter import graph
from exporter.errors import ExportError
from exporter.export import export


def _model(
    nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], inputs: list, outputs: list
) -> onnx.ModelProto:
    made = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def _value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def test_sum_form_is_equally_exact() -> None:
    rng = np.random.default_rng(0)
    rows, columns, blocks = 24, 96, 3
    codes = rng.integers(0, 256, (rows, blocks, 16), dtype=np.uint8)
    scales = rng.uniform(0.5, 2, rows * blocks).astype(np.float16)
    minima = rng.normal(size=rows * blocks).astype(np.float16)
    x = rng.normal(size=(1, 5, columns)).astype(np.float32)
    product = helper.make_node(
        "MatMulNBits", ["x", "codes", "s", "z"], ["y"], domain="com.microsoft",
        K=columns, N=rows, bits=4, block_size=32, accuracy_level=0,
    )  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["scales"], ["s"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["negative"], ["n"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["n", "s"], ["z"]),
        product,
    ]
    initializers = [
        numpy_helper.from_array(a, n) for a, n in ((codes, "codes"), (scales, "scales"), (-minima, "negative"))
    ]
    model = _model(nodes, initializers, [_value("x", 1, 5, columns)], [_value("y", 1, 5, rows)])
    before = _run(model, x=x)[0]
    assert graph.sum_form(model) == 1
    assert all(len(n.input) < 4 for n in model.graph.node if n.op_type == "MatMulNBits")
    nibbles = np.stack((codes & 15, codes >> 4), -1).reshape(rows, blocks, 32).astype(np.float64)
    weights = nibbles * scales.reshape(rows, blocks, 1) + minima.reshape(rows, blocks, 1)
    expected = x.astype(np.float64) @ weights.reshape(rows, columns).T
    for found in (before, _run(model, x=x)[0]):
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_sum_form_leaves_other_models_alone() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    assert graph.sum_form(_model([node], [], [_value("x", 1)], [_value("y", 1)])) == 0


@pytest.mark.parametrize("read_again", [False, True])
def test_residual_norm_hands_on_the_sum(read_again: bool) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(1, 3, 16)).astype(np.float32) for _ in range(2))
    weight = numpy_helper.from_array(rng.normal(size=16).astype(np.float32), "w")
    norm = helper.make_node("SimplifiedLayerNormalization", ["sum", "w"], ["y"], axis=-1, epsilon=1e-5, stash_type=1)
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), norm]
    outputs = [_value("y", 1, 3, 16)]
    if read_again:
        nodes.append(helper.make_node("Neg", ["sum"], ["again"]))
        outputs.append(_value("again", 1, 3, 16))
    model = _model(nodes, [weight], [_value("a", 1, 3, 16), _value("b", 1, 3, 16)], outputs)
    before = _run(model, a=a, b=b)
    graph.fuse_residual_norms(model)
    assert model.graph.node[0].op_type == "SkipSimplifiedLayerNormalization"
    for was, now in zip(before, _run(model, a=a, b=b), strict=True):
        np.testing.assert_allclose(now, was, atol=1e-5)


def test_a_sum_read_before_the_norm_is_left() -> None:
    weight = numpy_helper.from_array(np.ones(16, np.float32), "w")
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Neg", ["sum"], ["again"]),
        helper.make_node("SimplifiedLayerNormalization", ["sum", "w"], ["y"], axis=-1, epsilon=1e-5, stash_type=1),
    ]
    model = _model(nodes, [weight], [_value("a", 16), _value("b", 16)], [_value("y", 16), _value("again", 16)])
    graph.fuse_residual_norms(model)
    assert [n.op_type for n in model.graph.node] == ["Add", "Neg", "SimplifiedLayerNormalization"]


def test_shards_hold_each_byte_once_and_aligned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "SHARD_BYTES", 20_000)
    tiny_gguf.write(tmp_path / "tiny.gguf")
    target = export(str(tmp_path / "tiny.gguf"), tmp_path / "models", tmp_path / "cache")
    places: dict[str, list[tuple[int, int]]] = {}
    for tensor in graph.load(target / "model.onnx").graph.initializer:
        if graph.is_external(tensor):
            place = graph.where(tensor)
            places.setdefault(place["location"], []).append((int(place["offset"]), int(place["length"])))
    assert len(places) > 3
    for name, ranges in places.items():
        end = 0
        for offset, length in sorted(set(ranges)):
            assert offset % graph.ALIGNMENT == 0 and end <= offset < end + graph.ALIGNMENT
            end = offset + length
        assert (target / name).stat().st_size == end


def _stand_ins(count: int) -> onnx.ModelProto:
    """A traced graph of ``count`` Identity nodes, each over an initializer of eight bytes that stands for another."""
    nodes = [helper.make_node("Identity", [f"codes.{i}"], [f"y.{i}"]) for i in range(count)]
    initializers = [numpy_helper.from_array(np.full(8, i, np.uint8), f"codes.{i}") for i in range(count)]
    return _model(nodes, initializers, [], [_value(f"y.{i}", 1) for i in range(count)])


def test_weights_past_two_gigabytes(tmp_path: Path) -> None:
    """More than a protobuf can hold: the graph stays small, and what it refers to is where it says."""
    each, count = graph.SHARD_BYTES - 100, 35
    same = torch.zeros(each, dtype=torch.uint8)
    same[[0, -1]] = torch.tensor([7, 9], dtype=torch.uint8)
    model = _stand_ins(count)
    tensors = {f"codes.{i}": same.view(4, -1) for i in range(count)}
    graph.refer(model, tensors)
    assert graph.weight_bytes(model) == count * each > 1 << 31
    try:
        shards = graph.shard(model, tensors, tmp_path, lambda _: None)
        assert len(model.SerializeToString()) < 10_000
        assert len(shards) == count
        for tensor in model.graph.initializer:
            place = graph.where(tensor)
            assert list(tensor.dims) == [4, each // 4]
            with (tmp_path / place["location"]).open("rb") as file:
                file.seek(int(place["offset"]))
                assert file.read(1) == b"\7"
                file.seek(int(place["offset"]) + int(place["length"]) - 1)
                assert file.read() == b"\11"
    finally:
        for path in tmp_path.glob("*.bin"):  # pytest would keep them for three runs
            path.unlink()


def test_a_tensor_larger_than_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MAX_FILE_BYTES", 1999)
    model = _stand_ins(1)
    tensors = {"codes.0": torch.zeros(2000, dtype=torch.uint8)}
    graph.refer(model, tensors)
    with pytest.raises(ExportError, match=r"codes.0 takes 0.00 GB in one piece"):
        graph.shard(model, tensors, tmp_path, lambda _: None)
