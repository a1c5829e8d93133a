"""Adapters in the CPU session: the kernels of the low-rank branch against native ONNX Runtime on the same graph."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import cpu_session
import kernel_graph
from exporter import graph, plan
from exporter.native import NativeSession
from handbill.manifest import KVLayout
from kernel_graph import Array, Shape
from test_plan import asked_rows, distance

SHAPES = {
    "llama": Shape(branches=True),
    "odd": Shape(branches=True, inner=100, heads=3, kv_heads=3, zeros="none", vocabulary=323, head_dim=48),
    "head_norm": Shape(branches=True, head_norm=True, head_dim=64, kv_heads=1, activation="gelu_tanh", bias=True),
}
RANKS = {"one": 1, "eight": 8, "odd": 27}
CHUNKS = [37, 1, 1, 2, 3, 51, 5]


def build(folder: Path, shape: Shape) -> tuple[Path, dict[str, Any]]:
    """A random model with a branch everywhere and an adapter of each rank, one of which leaves out every other branch;
    the model and what the manifest says of the adapters."""
    model = kernel_graph.build(folder, shape)
    proto = graph.load(model)
    sizes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in proto.graph.input}
    stems = [name.removesuffix(".lora_a") for name in sizes if name.endswith(".lora_a")]
    plan.write(proto, folder / "plan.json", dict.fromkeys(stems, max(RANKS.values())))
    rng = np.random.default_rng(2)
    for name, rank in RANKS.items():
        tensors = {}
        for stem in stems[:: 2 if name == "eight" else 1]:
            (columns, _), (_, rows) = sizes[f"{stem}.lora_a"], sizes[f"{stem}.lora_b"]
            tensors[f"{stem}.lora_a"] = rng.normal(0, 0.3, (columns, rank)).astype(np.float16)
            tensors[f"{stem}.lora_b"] = rng.normal(0, 0.3 / rank, (rank, rows)).astype(np.float16)
        save_file(tensors, folder / f"adapter-{name}.safetensors")
    return model, {"adapters": [{"name": name, "file": f"adapter-{name}.safetensors"} for name in RANKS]}


def native(model: Path, shape: Shape, ids: list[int], adapter: str) -> Array:
    """Logits [len(ids), vocabulary] with ``adapter``, at accuracy_level 0."""
    kv = KVLayout("float32", shape.layers, shape.kv_heads, shape.head_dim)
    files = {name: model.with_name(f"adapter-{name}.safetensors") for name in RANKS}
    session = NativeSession(model, kv, shape.context, threads=1, adapters=files)
    asyncio.run(session.adapter(adapter))
    return session.logits(ids, len(ids))


def steps(ids: list[int], adapter: str, chunks: list[int]) -> list[dict[str, Any]]:
    found, done = [], 0
    for size in chunks:
        found.append({"ids": ids[done : done + size], "positions": min(16, size), "logits": True})
        done += size
    found[0]["adapter"] = adapter
    return found


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_switching_computes_what_native_does(tmp_path: Path, name: str, threads: int) -> None:
    """One session, every adapter and none between; back at the base every bit is as before."""
    shape = SHAPES[name]
    model, manifest = build(tmp_path, shape)
    ids = np.random.default_rng(1).integers(0, shape.vocabulary, 100).tolist()
    order = ["", *RANKS, "", "eight", "one"]
    everything = [step for adapter in order for step in steps(ids, adapter, CHUNKS)]
    _, answers = cpu_session.run(tmp_path, everything, threads=threads, **manifest)
    found = [
        np.concatenate([answer.logits for answer in answers[first : first + len(CHUNKS)]])
        for first in range(0, len(answers), len(CHUNKS))
    ]
    expected = {adapter: native(model, shape, ids, adapter)[asked_rows(CHUNKS)] for adapter in ("", *RANKS)}
    for adapter, logits in zip(order, found, strict=True):
        assert distance(logits, expected[adapter]) < 1e-3
        if adapter:
            assert distance(logits, expected[""]) > 0.1, "the adapter should matter"
    assert np.array_equal(found[0], found[4])
    assert np.array_equal(found[2], found[5])


def test_logits_do_not_depend_on_steps_or_threads(tmp_path: Path) -> None:
    shape = SHAPES["llama"]
    _, manifest = build(tmp_path, shape)
    ids = np.random.default_rng(1).integers(0, shape.vocabulary, 60).tolist()
    last = []
    for threads, chunks in ((1, [44, 16]), (3, [44, *[1] * 16]), (2, [13, 31, 2, 3, 4, 5, 2])):
        _, answers = cpu_session.run(tmp_path, steps(ids, "odd", chunks), threads=threads, **manifest)
        last.append(np.concatenate([answer.logits for answer in answers])[-16:])
    assert np.array_equal(last[0], last[1])
    assert np.array_equal(last[0], last[2])


def test_the_branch_is_in_the_plan_and_its_matrix_in_place(tmp_path: Path) -> None:
    build(tmp_path, SHAPES["llama"])
    ops = json.loads((tmp_path / "plan.json").read_text("utf-8"))["ops"]
    kinds = [op["op"] for op in ops]
    assert kinds.count("low_rank") == kinds.count("linear") - 1 == 2 * 5
    for index, op in enumerate(ops):
        if op["op"] == "low_rank":
            matrix = ops[index - 1]
            assert (matrix["op"], matrix["x"], matrix["y"]) == ("linear", op["x"], op["y"])


def test_a_file_that_cannot_be_is_a_fault_and_changes_nothing(tmp_path: Path) -> None:
    shape = SHAPES["llama"]
    _, manifest = build(tmp_path, shape)
    whole = (tmp_path / "adapter-eight.safetensors").read_bytes()
    stem = "l0.qkv"
    rows = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    damaged = {
        "cut short": whole[:-2],
        "no safetensors file": whole[:40],
        f"does not fit {stem}": _file(tmp_path, stem, (shape.hidden, 28), (28, rows)),  # a rank past the plan's
        f"does not fit {stem} ": _file(tmp_path, stem, (shape.hidden, 4), (4, rows - 1)),
        f"holds {stem}.lora_a as F32": _file(tmp_path, stem, (shape.hidden, 4), (4, rows), np.float32),
        f"holds no finite numbers in {stem}.lora_a": _file(tmp_path, stem, (shape.hidden, 4), (4, rows), number=np.inf),
    }
    cases = []
    for number, data in enumerate(damaged.values()):
        (tmp_path / f"{number}.safetensors").write_bytes(data)
        entry = {"adapters": [{"name": "odd", "file": f"{number}.safetensors"}]}
        cases.append(cpu_session.case(tmp_path, steps([1, 2, 3], "odd", [3]), **entry))
    cases.append(cpu_session.case(tmp_path, steps([1, 2, 3], "poems", [3]), **manifest))
    results = cpu_session.run_all(cases)
    for result, says in zip(results, [*damaged, "has no adapter poems"], strict=True):
        assert isinstance(result, cpu_session.FaultError)
        assert result.kind == "manifest"
        assert says.strip() in str(result)


def _file(
    folder: Path, stem: str, a: tuple[int, int], b: tuple[int, int], dtype: Any = np.float16, number: float = 1
) -> bytes:
    target = folder / "scratch.safetensors"
    save_file({f"{stem}.lora_a": np.full(a, number, dtype), f"{stem}.lora_b": np.ones(b, dtype)}, target)
    return target.read_bytes()
