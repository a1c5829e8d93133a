"""The plan and the CPU session against native ONNX Runtime on the same graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import cpu_session
import kernel_graph
from exporter import graph, plan
from exporter.plan_tensors import PlanError
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


def ours(folder: Path, ids: list[int], chunks: list[int], **options: Any) -> Array:
    steps, done = [], 0
    for size in chunks:
        steps.append({"ids": ids[done : done + size], "positions": min(16, size), "logits": True})
        done += size
    _, answers = cpu_session.run(folder, steps, **options)
    for answer in answers:
        order = np.argsort(-answer.logits, axis=1, kind="stable")[:, : answer.ids.shape[1]]
        assert np.array_equal(answer.ids, order)
        assert np.array_equal(answer.top, np.take_along_axis(answer.logits, order, 1))
    return np.concatenate([answer.logits for answer in answers])


def asked_rows(chunks: list[int]) -> list[int]:
    """The positions whose logits ``ours`` returns: the last 16 of each chunk."""
    ends = np.cumsum(chunks)
    return [row for end, size in zip(ends, chunks, strict=True) for row in range(end - min(16, size), end)]


def distance(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("build", "threads"), [("relaxed", 1), ("plain", 3)])
def test_random_models(tmp_path: Path, name: str, build: str, threads: int) -> None:
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
    assert distance(ours(tmp_path, ids, chunks, build=build, threads=threads), expected) < 1e-3


LONG = {
    "long": Shape(context=640),
    "long_window": Shape(context=640, window=300, heads=6, kv_heads=1, softcap=9.0),
    "long_head": Shape(context=640, head_dim=256, heads=2, kv_heads=1, zeros="none"),
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("build", ["relaxed", "plain"])
def test_logits_do_not_depend_on_steps_or_threads(tmp_path: Path, name: str, build: str) -> None:
    """Bit for bit, past several spans of attention: what makes drafted tokens safe, and threads."""
    shape = LONG[name]
    model = kernel_graph.build(tmp_path, shape)
    plan.write(graph.load(model), tmp_path / "plan.json")
    ids = np.random.default_rng(1).integers(0, shape.vocabulary, 600).tolist()
    asked = list(range(584, 600))
    wide = [128, 128, 128, 128, 72, 16]
    for chunks in ([*wide[:4], 72, *[1] * 16], [100, 128, 128, 128, 100, 2, 3, 4, 5, 2]):
        assert sum(chunks) == 600
        options: dict[str, Any] = {"build": build, "architecture": {"context": 640}}
        one = ours(tmp_path, ids, wide, **options)[-16:]
        for threads in (1, 3):
            other = ours(tmp_path, ids, chunks, threads=threads, **options)
            assert np.array_equal(other[[asked_rows(chunks).index(row) for row in asked]], one)
    assert distance(one, native(model, shape, ids, wide)[asked]) < 1e-3


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
