"""The plan operation by operation: what each leaves in its buffer against the same value of native ONNX Runtime."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import cpu_session
import exporter.plan
import kernel_graph
from cpu_session import FaultError
from exporter import graph
from exporter.plan import Planner
from exporter.plan_buffers import reuse_buffers
from exporter.plan_values import Columns
from kernel_graph import Array
from test_plan import SHAPES, distance

NAMES = [
    *("llama", "packed_zeros", "four_bit_embedding", "window", "softcap", "head_norm", "partial_rotary", "gelu_erf"),
    *("layer_norm", "layer_norm_of_heads", "longrope"),
]
CHUNKS = [33, 7]
"""The last one is compared: its queries see keys of both."""


def traced(model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The plan of ``model``, and for each operation which value of the graph its ``y`` and its ``sum`` are."""
    written: list[dict[str, int]] = []

    def note(ops: list[dict[str, Any]], buffers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        written.extend({key: op[key][0] for key in ("y", "sum") if key in op} for op in ops)
        return reuse_buffers(ops, buffers)

    monkeypatch.setattr(exporter.plan, "reuse_buffers", note)
    planner = Planner(model, {})
    plan = planner.plan()
    width = {number: buffer["width"] for number, buffer in enumerate(planner.buffers)}
    values = {
        value.buffer: name
        for name, value in planner.values.items()
        if isinstance(value, Columns) and (value.start, value.width) == (0, width[value.buffer])
    }
    return plan, [{key: values[number] for key, number in op.items() if number in values} for op in written]


def cut(plan: dict[str, Any], number: int, key: str) -> dict[str, Any]:
    """``plan`` as far as operation ``number``, whose ``key`` comes out in the place of logits."""
    short = copy.deepcopy(plan)
    short["ops"] = short["ops"][: number + 1]
    y = short["ops"][number][key]
    buffer = short["buffers"][y[0]]
    width = _width(plan, number)
    if buffer["rows"] == "tokens":
        short["buffers"].append({"rows": "asked", "width": width})
        asked = [len(short["buffers"]) - 1, 0]
        short["ops"].append({"op": "pick", "x": y, "y": asked, "width": width})
        y = asked
    short["ops"].append({"op": "top_k", "x": y, "width": width})
    return short | {"vocabulary": width, "top_k": min(64, width)}


def _width(plan: dict[str, Any], number: int) -> int:
    """Columns that operation ``number`` writes."""
    op = plan["ops"][number]
    if op["op"] in ("embed", "linear"):
        weights = plan["weights"][op["weights"]]
        return int(weights["columns" if op["op"] == "embed" else "rows"])
    if op["op"] == "attend":
        return int(op["heads"] * plan["caches"][op["cache"]]["head_dim"])
    return int(op["width"] * op.get("groups", 1))


def native(model: Path, names: list[str], ids: list[int], shape: kernel_graph.Shape) -> dict[str, Array]:
    """The values ``names`` of the last of CHUNKS, [rows, columns] each; as they are, not optimized away."""
    proto = onnx.load(str(model))
    there = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    empty = np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)
    past = {f"past_key_values.{i}.{kind}": empty for i in range(shape.layers) for kind in ("key", "value")}
    presents = [name.replace("past_key_values", "present") for name in past]
    done, values = 0, []
    for size in CHUNKS:
        feeds = {"input_ids": np.array([ids[done : done + size]]), "positions": np.arange(size)}
        done += size
        feeds |= {"seqlens_k": np.array([done - 1], np.int32), "total_sequence_length": np.array(done, np.int32)}
        values = session.run([*names, *presents], feeds | past)
        past = dict(zip(past, values[len(names) :], strict=True))
    return {name: value.reshape(CHUNKS[-1], -1) for name, value in zip(names, values, strict=False)}


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_computes_what_its_node_does(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = replace(SHAPES[name], vocabulary=640)  # As many as the widest buffer has columns.
    model = kernel_graph.build(tmp_path, shape)
    plan, values = traced(graph.load(model), monkeypatch)
    places = [(number, key) for number, op in enumerate(values) for key in op]
    assert [number for number, key in places if key == "y"] == list(range(len(plan["ops"]) - 1)), "a value has no name"
    ids = np.random.default_rng(1).integers(0, 48, sum(CHUNKS)).tolist()  # Fewer than any buffer has columns.
    exact = native(model, sorted({values[number][key] for number, key in places}), ids, shape)
    steps = [{"ids": ids[: CHUNKS[0]]}, {"ids": ids[CHUNKS[0] :], "positions": CHUNKS[1], "logits": True}]
    cases = []
    for index, (number, key) in enumerate(places):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / kernel_graph.SHARD).symlink_to(tmp_path / kernel_graph.SHARD)
        (folder / "plan.json").write_text(json.dumps(cut(plan, number, key)))
        cases.append(cpu_session.case(folder, steps))
    for (number, key), result in zip(places, cpu_session.run_all(cases), strict=True):
        told = f"operation {number} ({plan['ops'][number]['op']}), which is {values[number][key]}"
        assert not isinstance(result, FaultError), f"{told}: {result}"
        assert distance(result[1][1].logits, exact[values[number][key]]) < 1e-3, told
