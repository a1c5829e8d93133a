"""The plan and the CPU session against native ONNX Runtime on the same graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import cpu_session
import kernel_graph
import tiny_checkpoint
import tiny_exports
from cpu_session import FaultError
from exporter import graph, plan
from exporter.native import NativeSession
from exporter.plan_tensors import Constants, PlanError
from handbill.manifest import NAME
from kernel_graph import Array, Shape

SHAPES = {
    "llama": Shape(),
    "symmetric": Shape(zeros="none"),
    "packed_zeros": Shape(zeros="packed", hidden=96, inner=160),
    "eight_bits": Shape(bits=8, zeros="none"),
    "eight_bits_zeros": Shape(bits=8, zeros="packed"),
    "four_bit_embedding": Shape(embedding_bits=4, zeros="none"),
    "block_128": Shape(hidden=256, inner=384, block=128, zeros="packed"),
    "half_blocks": Shape(bits=8, block=16, zeros="none", factors=True),
    "four_bit_factors": Shape(hidden=256, inner=512, factors=True),
    "five_bits_in_eight": Shape(hidden=256, inner=512, bits=8, shift=112, factors=True),
    "eight_bit_minima": Shape(bits=8, shift=112),
    "odd_columns": Shape(inner=100, heads=3, kv_heads=3, zeros="none", vocabulary=323, head_dim=48),
    "window": Shape(window=16),
    "softcap": Shape(softcap=5.0, final_cap=8.0),
    "head_norm": Shape(head_norm=True, head_dim=64, kv_heads=1),
    "partial_rotary": Shape(rotary=0.4, head_dim=80),
    "no_rotary": Shape(rotary=0),
    "gelu_tanh": Shape(activation="gelu_tanh", embedding_scale=2.5),
    "gelu_erf": Shape(activation="gelu_erf", bias=True),
    "one_head": Shape(heads=1, kv_heads=1, head_dim=128),
    "seven_to_one": Shape(heads=7, kv_heads=1),
    "layer_norm": Shape(norm="LayerNormalization", bias=True),
    "layer_norm_of_heads": Shape(norm="LayerNormalization", head_norm=True, head_dim=64, kv_heads=1),
    "longrope": Shape(switch=64),
    "longrope_packed_partial": Shape(switch=44, rotary=0.5, window=30, zeros="packed"),
}


def native(model: Path, shape: Shape, ids: list[int], chunks: list[int]) -> Array:
    """Logits [len(ids), vocabulary] of native ONNX Runtime at accuracy_level 0, in steps of the given sizes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    empty = np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)
    past = {f"past_key_values.{i}.{kind}": empty for i in range(shape.layers) for kind in ("key", "value")}
    names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    logits, done = [], 0
    for size in chunks:
        feeds = {
            "input_ids": np.array([ids[done : done + size]]),
            "positions": np.arange(size),
            "seqlens_k": np.array([done + size - 1], np.int32),
            "total_sequence_length": np.array(done + size, np.int32),
        }
        first, *present = session.run(names, feeds | past)
        logits.append(first[0])
        past = dict(zip(past, present, strict=True))
        done += size
    return np.concatenate(logits)


def ours(folder: Path, ids: list[int], ways: list[tuple[list[int], int]], **manifest: Any) -> list[Array]:
    """Logits of the CPU session at ``asked_rows`` for each of ``ways`` (chunks, threads), in one Node process."""
    cases = []
    for chunks, threads in ways:
        steps, done = [], 0
        for size in chunks:
            steps.append({"ids": ids[done : done + size], "positions": min(16, size), "logits": True})
            done += size
        cases.append(cpu_session.case(folder, steps, threads=threads, **manifest))
    found = []
    for result in cpu_session.run_all(cases):
        assert not isinstance(result, FaultError), result
        for answer in result[1]:
            order = np.argsort(-answer.logits, axis=1, kind="stable")[:, : answer.ids.shape[1]]
            assert np.array_equal(answer.ids, order)
            assert np.array_equal(answer.top, np.take_along_axis(answer.logits, order, 1))
        found.append(np.concatenate([answer.logits for answer in result[1]]))
    return found


def asked_rows(chunks: list[int]) -> list[int]:
    """The positions whose logits ``ours`` returns: the last 16 of each chunk."""
    ends = np.cumsum(chunks)
    return [row for end, size in zip(ends, chunks, strict=True) for row in range(end - min(16, size), end)]


def distance(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", SHAPES)
def test_random_models(tmp_path: Path, name: str) -> None:
    """int16 activations and a KV cache of 13 bits move random models' logits by less than a thousandth."""
    shape = SHAPES[name]
    model = kernel_graph.build(tmp_path, shape)
    proto = graph.load(model)
    plan.write(proto, tmp_path / "plan.json")
    if graph.sum_form(proto, bits=(8,)):  # native ONNX Runtime has float zero points for 4 bits alone
        onnx.save(proto, str(model))
    ids = np.random.default_rng(1).integers(0, shape.vocabulary, 100).tolist()
    chunks = [37, 1, 1, 2, 3, 51, 5]
    expected = native(model, shape, ids, chunks)[asked_rows(chunks)]
    one, three = ours(tmp_path, ids, [(chunks, 1), (chunks, 3)])
    assert distance(one, expected) < 1e-3
    assert np.array_equal(one, three)


LONG = {
    "long": Shape(context=640),
    "long_window": Shape(context=640, window=300, heads=6, kv_heads=1, softcap=9.0),
    "long_head": Shape(context=640, head_dim=256, heads=2, kv_heads=1, zeros="none"),
    "long_layer_norm": Shape(context=640, norm="LayerNormalization"),
}


@pytest.mark.parametrize("name", LONG)
def test_logits_do_not_depend_on_steps_or_threads(tmp_path: Path, name: str) -> None:
    """Bit for bit, past several spans of attention: what makes drafted tokens safe, and threads."""
    shape = LONG[name]
    model = kernel_graph.build(tmp_path, shape)
    plan.write(graph.load(model), tmp_path / "plan.json")
    ids = np.random.default_rng(1).integers(0, shape.vocabulary, 600).tolist()
    asked = list(range(584, 600))
    wide = [128, 128, 128, 128, 72, 16]
    others = [[*wide[:4], 72, *[1] * 16], [100, 128, 128, 128, 100, 2, 3, 4, 5, 2]]
    ways = [(wide, 1), *((chunks, threads) for chunks in others for threads in (1, 3))]
    assert {sum(chunks) for chunks, _ in ways} == {600}
    found = ours(tmp_path, ids, ways, architecture={"context": 640})
    rows = [[asked_rows(chunks).index(row) for row in asked] for chunks, _ in ways]
    one, *same = (logits[each] for logits, each in zip(found, rows, strict=True))
    for (chunks, threads), other in zip(ways[1:], same, strict=True):
        assert np.array_equal(other, one), (chunks, threads)
    assert distance(one, native(model, shape, ids, wide)[asked]) < 1e-3


@pytest.mark.parametrize("name", tiny_checkpoint.configs())
def test_every_structure(name: str) -> None:
    """Whatever is exported has a plan; its kernels and native ONNX Runtime say the same, past window and switch.

    Within two thousandths: where a tiny model's scores are large, 13 bits of its keys show more than above.
    """
    folder = tiny_exports.exact(name)
    ids = list(range(3, 3 + 2 * tiny_checkpoint.SWITCH))
    chunks = [16, *[1] * 3, 16, 13, *[1] * 4, 2, 10, 1, 3]
    ids = ids[: sum(chunks)]
    assert len(ids) > tiny_checkpoint.SWITCH
    session, expected, done = NativeSession.open(folder, threads=1), [], 0
    for size in chunks:
        expected.append(session.logits(ids[done : done + size], size))
        done += size
    session.close()
    wanted = np.concatenate(expected)
    manifest = json.loads((folder / NAME).read_text("utf-8"))
    one, three = ours(folder, ids, [(chunks, 1), (chunks, 3)], **manifest)
    assert np.array_equal(one, three)
    assert distance(one, wanted) < 2e-3


def test_unknown_operator_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    model = kernel_graph.build(tmp_path, Shape())
    proto = onnx.load(str(model), load_external_data=False)
    next(node for node in proto.graph.node if node.op_type == "Sigmoid").op_type = "Softsign"
    onnx.save(proto, str(model))
    with pytest.raises(PlanError, match=r"do not know Softsign as .* so this model runs on ORT Web only on the CPU"):
        plan.write(graph.load(model), tmp_path / "plan.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", kernel_graph.SHARD]


@pytest.mark.parametrize("setting", ["smooth_softmax", "no_causal"])
def test_attention_the_kernels_lack_is_refused(tmp_path: Path, setting: str) -> None:
    model = kernel_graph.build(tmp_path, Shape())
    proto = onnx.load(str(model), load_external_data=False)
    node = next(node for node in proto.graph.node if node.op_type == "GroupQueryAttention")
    node.attribute.append(helper.make_attribute(setting, 1))
    onnx.save(proto, str(model))
    with pytest.raises(PlanError, match="GroupQueryAttention"):
        plan.derive(graph.load(model))


def test_plan_copies_no_weights_and_shares_the_embedding(tmp_path: Path) -> None:
    found = plan.derive(graph.load(kernel_graph.build(tmp_path, Shape())))
    assert all("file" in tensor or tensor["elements"] <= 64 for tensor in found["tensors"])
    embed, head = (next(op for op in found["ops"] if op["op"] == kind) for kind in ("embed", "pick"))
    lm_head = found["ops"][found["ops"].index(head) + 1]
    assert lm_head["op"] == "linear" and lm_head["weights"] == embed["weights"]
    assert {weights["zeros"]["kind"] for weights in found["weights"] if "zeros" in weights} == {"minimum_negated"}


def constants(*nodes: Any, **initializers: Array) -> Constants:
    """The Constants of a graph of these ``initializers``, through which ``nodes`` were folded."""
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    model = helper.make_model(helper.make_graph(list(nodes), "constants", [], [], tensors))
    found = Constants(model)
    for node in nodes:
        found.fold(node)
    return found


def test_a_slice_of_a_constant_is_its_own_numbers() -> None:
    slice_it = helper.make_node("Slice", ["whole", "start", "end"], ["part"])
    split_it = helper.make_node("Split", ["whole"], ["first", "second"], axis=0)
    negate_it = helper.make_node("Neg", ["second"], ["negated"])
    whole = np.array([1, 2, 3, 4], np.float32)
    found = constants(slice_it, split_it, negate_it, whole=whole, start=np.array([1]), end=np.array([3]))
    reader = helper.make_node("Add", ["part", "second", "negated", "whole"], ["y"])
    assert [found.numbers(reader, i) for i in range(4)] == [[2, 3], [3, 4], [-3, -4], [1, 2, 3, 4]]


@pytest.mark.parametrize("to", [TensorProto.UINT8, TensorProto.INT8, TensorProto.FLOAT16, TensorProto.INT64])
def test_a_cast_that_changes_numbers_is_no_constant(to: int) -> None:
    found = constants(helper.make_node("Cast", ["x"], ["y"], to=to), x=np.array([0.5, 300], np.float32))
    assert found.get("y") is None
    same = constants(helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT), x=np.array([3, 4], np.uint8))
    assert same.get("y") == same.get("x")
