"""Numbers that are none: in the shards they are refused, in the KV cache they stay where nobody looks."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpu_session
from cpu_session import FaultError
from kernel_plan import ANY_THREADS, CONTEXT, Array, Plan, one_attention

SIZE = {"architecture": {"context": CONTEXT}}


def spoilt(array: Array, number: float) -> Array:
    """A copy of ``array`` that has ``number`` in one place near its end."""
    copy = array.copy()
    copy.reshape(-1)[-2] = number
    return copy


def a_plan(spoil: dict[str, float]) -> dict[str, Any]:
    """A matrix, a norm and a vector; ``spoil`` puts a number into the tensor of that name."""
    rng = np.random.default_rng(0)
    plan = Plan(rng.normal(0, 1, (4, 64)).astype(np.float32), 64)

    def tensor(name: str, array: Array) -> int:
        return plan.tensor(spoilt(array, spoil[name]) if name in spoil else array)

    def weights(name: str, zeros: str, dtype: type, bits: int = 4) -> int:
        codes = rng.integers(0, 256, (64, 2, 16 * bits // 4), np.uint8)
        scales = rng.uniform(0.1, 1, (64, 2)).astype(dtype)
        points = rng.uniform(0, 15, (64, 2)).astype(dtype)
        entry: dict[str, Any] = {"rows": 64, "columns": 64, "bits": bits, "block": 32, "values": plan.tensor(codes)}
        entry["scales"] = tensor(f"{name} scales", scales)
        entry["zeros"] = {"kind": zeros, "tensor": tensor(f"{name} zeros", points)}
        entry["bias"] = tensor(f"{name} bias", rng.normal(0, 1, 64).astype(dtype))
        plan.weights.append(entry)
        return len(plan.weights) - 1

    x = plan.x
    half, whole, factored = (
        weights("half", "float", np.float16),
        weights("float", "minimum", np.float32),
        weights("factored", "minimum_negated", np.float16),
    )
    for part, key in ((plan.weights[factored], "scales"), (plan.weights[factored]["zeros"], "tensor")):
        few = rng.uniform(0.01, 0.1, 64).astype(np.float16)
        part[key] = tensor(f"factored {key}", few)
        part["factors"] = plan.tensor(rng.integers(0, 63, 128, np.uint8))
    for number in (half, whole, factored):
        y = plan.buffer(64)
        plan.ops.append({"op": "linear", "weights": number, "x": [x, 0], "y": [y, 0]})
        x = plan.buffer(64)
        norm = {"op": "norm", "x": [y, 0], "y": [x, 0], "width": 64, "groups": 1, "epsilon": 1e-5}
        dtype = np.float16 if number == half else np.float32
        plan.ops.append(norm | {"weight": tensor(f"{np.dtype(dtype)} norm", rng.uniform(1, 2, 64).astype(dtype))})
    return plan.end(x)


PLACES = [
    *(f"{name} {part}" for name in ("half", "float") for part in ("scales", "zeros", "bias")),
    *("factored scales", "factored tensor", "float16 norm", "float32 norm"),
]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """A half of that kind would become a number of some 65,536, and the model answer nonsense without a word."""
    cases = []
    plans = [{}, *({place: number} for place in PLACES for number in (np.inf, -np.inf, np.nan))]
    for number, spoil in enumerate(plans):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "plan.json").write_text(json.dumps(a_plan(spoil)))
        cases.append(cpu_session.case(folder, [{"ids": [0, 1, 2]}], threads=1 + number % 2, **SIZE))
    whole, *results = cpu_session.run_all(cases)
    assert not isinstance(whole, FaultError), whole
    for spoil, result in zip(plans[1:], results, strict=True):
        assert isinstance(result, FaultError) and result.kind == "manifest", spoil
        assert "is not of finite numbers; export the model again." in str(result)


def test_a_model_that_computes_no_numbers_says_so(tmp_path: Path) -> None:
    """And the KV cache is as before."""
    plan = Plan(np.stack([np.ones(64), np.full(64, 3e38)]).astype(np.float32), 64)
    y = plan.buffer(64)
    op = {"op": "map", "activation": "none", "combine": "mul", "a": [plan.x, 0], "scalar": 4, "width": 64, "y": [y, 0]}
    plan.ops.append(op)
    (tmp_path / "plan.json").write_text(json.dumps(plan.end(y)))
    with pytest.raises(FaultError, match="computes no finite numbers") as caught:
        cpu_session.run(tmp_path, [{"ids": [0]}, {"ids": [1]}], **SIZE)
    assert caught.value.kind == "manifest"


@ANY_THREADS
def test_what_a_rewound_position_left_is_not_seen(tmp_path: Path, threads: int) -> None:
    """Not even infinite values: 0 times their scale is no number and rounds to 32,767, but their integers are 0."""
    dim = 32
    plan, _ = one_attention(dim, 0, 4, 1, 0, 0.0, False)
    width = 6 * dim
    embedding = plan["weights"][plan["ops"][0]["weights"]]
    tensor = plan["tensors"][embedding["scales"]]
    scales = np.frombuffer(base64.b64decode(tensor["data"]), np.float32).copy().reshape(embedding["rows"], -1)
    scales[7, -1] = 3e36  # Its values, once they are four times as large.
    tensor["data"] = base64.b64encode(scales.tobytes()).decode()
    plan["buffers"].append({"width": width, "rows": "tokens"})
    larger = {"op": "map", "activation": "none", "combine": "mul", "a": [0, 0], "scalar": 4, "width": width}
    plan["ops"].insert(1, larger | {"y": [len(plan["buffers"]) - 1, 0]})
    plan["ops"][2] |= {"v": [len(plan["buffers"]) - 1, 5 * dim]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    first, last = {"ids": [0, 1, 2]}, {"ids": [3], "logits": True}
    stale = [first, {"ids": [4, 5, 7, 7, 6], "fails": True}, {**last, "rewind": 3}]
    cases = [cpu_session.case(tmp_path, steps, threads=threads, **SIZE) for steps in ([first, last], stale)]
    answers = [[] if isinstance(result, FaultError) else result[1] for result in cpu_session.run_all(cases)]
    assert answers[1][1].ids.size == 0
    assert np.array_equal(answers[0][-1].logits, answers[1][-1].logits)
