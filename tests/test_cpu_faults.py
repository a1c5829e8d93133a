"""Plans, shards and steps that the CPU session must refuse in words, and threads that die."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpu_session
from cpu_session import FaultError
from kernel_plan import ANY_THREADS, CONTEXT, Plan, random_weights


def small_plan() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    plan = Plan(rng.normal(0, 1, (4, 64)).astype(np.float32), 64)
    number, _ = random_weights(plan, rng, 64, 64, 4, "packed")
    y, attended, normed = plan.buffer(64), plan.buffer(64), plan.buffer(64)
    plan.caches.append({"kv_heads": 1, "head_dim": 16})
    table = plan.tensor(np.ones((CONTEXT, 8), np.float32))
    plan.ops += [
        {"op": "linear", "weights": number, "x": [plan.x, 0], "y": [y, 0]},
        {"op": "attend", "cache": 0, "q": [y, 0], "k": [y, 32], "v": [y, 48], "heads": 2, "y": [attended, 0]}
        | {"scale": 0.25, "softcap": 0, "window": 0}
        | {"rotary": {"cos": table, "sin": table, "dim": 16, "interleaved": False}},
        {"op": "norm", "x": [y, 0], "skip": [plan.x, 0], "y": [normed, 0], "width": 64, "groups": 1}
        | {"weight": plan.tensor(np.ones(64, np.float32)), "epsilon": 1e-5},
        {"op": "low_rank", "matrix": "m", "rank": 4, "x": [plan.x, 0], "columns": 64, "y": [normed, 0], "rows": 64},
    ]
    return plan.end(normed)


BROKEN = {
    "not_json": dict.clear,
    "format": lambda plan: plan.update(format=2),
    "no_ops": lambda plan: plan.update(ops=[]),
    "unknown_op": lambda plan: plan["ops"][1].update(op="constructor"),
    "weights_index": lambda plan: plan["ops"][1].update(weights=9),
    "buffer_index": lambda plan: plan["ops"][1].update(x=[-1, 0]),
    "columns": lambda plan: plan["ops"][1].update(x=[0, 1]),
    "narrow_output": lambda plan: plan["buffers"][1].update(width=63),
    "rows_lie": lambda plan: plan["weights"][1].update(rows=1 << 20),
    "huge_rows": lambda plan: plan["weights"][1].update(rows=2**40),
    "fraction": lambda plan: plan["weights"][1].update(columns=63.5),
    "dtype": lambda plan: plan["tensors"][0].update(dtype="float64"),
    "cut_short": lambda plan: plan["tensors"][0].update(elements=plan["tensors"][0]["elements"] + 1),
    "not_base64": lambda plan: plan["tensors"][0].update(data="!" * 8),
    "outside_file": lambda plan: plan["tensors"].append(
        {"file": "plan.json", "offset": 1 << 30, "dtype": "uint8", "elements": 8}
    ),
    "unlisted_file": lambda plan: plan["tensors"].append(
        {"file": "../secret", "offset": 0, "dtype": "uint8", "elements": 8}
    ),
    "negative_offset": lambda plan: plan["tensors"].append(
        {"file": "plan.json", "offset": -8, "dtype": "uint8", "elements": 8}
    ),
    "heads": lambda plan: plan["ops"][2].update(heads=64),
    "head_dim": lambda plan: plan["caches"][0].update(head_dim=20),
    "short_tables": lambda plan: plan.update(context=CONTEXT * 2),
    "one_table_of_two": lambda plan: plan["ops"][2]["rotary"].update(switch=64),
    "switch_at_nothing": lambda plan: plan["ops"][2]["rotary"].update(switch=0),
    "short_shift": lambda plan: plan["ops"][3].update(op="layer_norm", shift=0),
    "vocabulary": lambda plan: plan.update(vocabulary=65),
    "window": lambda plan: plan["ops"][2].update(window=-3),
    "top_k": lambda plan: plan.update(top_k=65),
    "branch_twice": lambda plan: plan["ops"].insert(4, plan["ops"][4]),
    "branch_past_its_input": lambda plan: plan["ops"][4].update(columns=65),
    "branch_past_its_matrix": lambda plan: plan["ops"][4].update(rows=65),
    "branch_on_itself": lambda plan: plan["ops"][4].update(y=plan["ops"][4]["x"]),
    "branch_of_no_rank": lambda plan: plan["ops"][4].update(rank=0),
    "two_ends": lambda plan: plan["ops"].append(plan["ops"][-1]),
    "no_second": lambda plan: plan["ops"].insert(
        1, {"op": "map", "activation": "none", "combine": "mul", "a": [0, 0], "y": [1, 0], "width": 64}
    ),
}


def test_broken_plans_are_refused_in_words(tmp_path: Path) -> None:
    cases = []
    for name, break_it in {"whole": dict.copy, **BROKEN}.items():
        plan = small_plan()
        break_it(plan)
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text("{" if name == "not_json" else json.dumps(plan))
        cases.append(cpu_session.case(tmp_path / name, [{"ids": [1, 2]}], architecture={"context": CONTEXT}))
    whole, *results = cpu_session.run_all(cases)
    assert not isinstance(whole, FaultError) and np.isfinite(whole[1][0].top).all()
    for name, result in zip(BROKEN, results, strict=True):
        assert isinstance(result, FaultError), name
        assert result.kind == "manifest", (name, result)
        assert re.fullmatch("The plan of the CPU session .*; export the model again.", str(result)), name


def test_shard_shorter_than_listed_is_refused(tmp_path: Path) -> None:
    plan = small_plan()
    tensor = plan["tensors"][0]
    plan["tensors"][0] = {"file": "w.bin", "offset": 0, "dtype": "uint8", "elements": tensor["elements"]}
    (tmp_path / "w.bin").write_bytes(b"\x80" * (tensor["elements"] - 1))
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    files = [{"name": name, "bytes": 1 << 20} for name in ("w.bin", "plan.json")]
    with pytest.raises(FaultError, match=r"cut short in w\.bin"):
        cpu_session.run(tmp_path, [], files=files, architecture={"context": CONTEXT})


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ({"ids": [64]}, "internal"),
        ({"ids": [-1]}, "internal"),
        ({"ids": []}, "internal"),
        ({"ids": [0] * 97}, "too_long"),
        ({"ids": [0, 1], "positions": 3}, "internal"),
        ({"ids": [0], "rewind": 1}, "internal"),
    ],
)
def test_bad_steps_are_refused(tmp_path: Path, step: dict[str, Any], kind: str) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(small_plan()))
    with pytest.raises(FaultError) as caught:
        cpu_session.run(tmp_path, [step], architecture={"context": CONTEXT})
    assert caught.value.kind == kind


@ANY_THREADS
def test_rewinding_gives_the_same_again(tmp_path: Path, threads: int) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(small_plan()))
    ids = np.random.default_rng(0).integers(0, 64, 80).tolist()
    steps = [{"ids": ids}, {"ids": ids[40:], "rewind": 40}, {"ids": ids[:79], "rewind": 0}, {"ids": ids[79:]}]
    for step in steps:
        step["logits"] = True
    _, answers = cpu_session.run(tmp_path, steps, threads=threads, architecture={"context": CONTEXT})
    assert np.array_equal(answers[0].logits, answers[1].logits)
    np.testing.assert_allclose(answers[0].logits, answers[3].logits, rtol=1e-4, atol=1e-5)


def test_helpers_that_die_between_steps_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(small_plan()))
    steps = [{"ids": list(range(60)), "logits": True}, {"ids": [1], "logits": True}]
    alive = cpu_session.case(tmp_path, steps, threads=3, architecture={"context": CONTEXT})
    results = cpu_session.run_all([alive, alive | {"kill": True}])
    answers = [result[1] for result in results if not isinstance(result, FaultError)]
    for one, other in zip(*answers, strict=True):
        assert np.array_equal(one.logits, other.logits)


def test_a_helper_that_dies_holding_a_task_is_done_without(tmp_path: Path) -> None:
    """The step waits for it for a while, then begins again on one thread; the next ones do not wait."""
    (tmp_path / "plan.json").write_text(json.dumps(small_plan()))
    # Many and long ones, for the helper has to be awake while one is under way.
    steps = [{"ids": list(range(64)) + [token % 64] * 31, "positions": 3, "rewind": 0} for token in range(500)]
    alive = cpu_session.case(tmp_path, steps, threads=2, architecture={"context": CONTEXT})
    results = cpu_session.run_all([alive, alive | {"helpers": "dying"}])
    answers, others = [result[1] for result in results if not isinstance(result, FaultError)]
    for one, other in zip(answers, others, strict=True):
        assert np.array_equal(one.ids, other.ids) and np.array_equal(one.top, other.top)
    assert sum(answer.seconds > 5 for answer in others) == 1
    assert not any(answer.seconds > 5 for answer in answers)


NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    7,
    8,
    9,
    33,
    63,
    65,
    96,
    97,
    1000,
    1 << 16,
    1 << 31,
    1 << 40,
    0.5,
    -0.0,
    1e300,
    None,
    "8",
    [],
]


def leaves(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of ``node`` that holds a number or a short word."""
    items = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else [])
    inner = [leaf for _, value in items for leaf in leaves(value)]
    return inner + [
        (node, key) for key, value in items if isinstance(value, int | float | str) and len(str(value)) < 20
    ]


def test_mutated_plans_are_refused_or_run(tmp_path: Path) -> None:
    """One or two numbers of a good plan replaced: the session says a sentence or answers; it never hangs or dies."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(300):
        plan = small_plan()
        found = leaves(plan)
        for choice in rng.integers(0, len(found), 1 + number % 2):
            container, key = found[choice]
            container[key] = NUMBERS[rng.integers(len(NUMBERS))]
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "plan.json").write_text(json.dumps(plan))
        steps = [{"ids": [1, 2, 3], "positions": 2}, {"ids": [0]}]
        cases.append(cpu_session.case(folder, steps, threads=1, architecture={"context": CONTEXT}))
    faults = [result for result in cpu_session.run_all(cases) if isinstance(result, FaultError)]
    assert 100 < len(faults) < 300
    # "internal" answers a token that the mutated vocabulary has not; a trap would say that the kernels stopped.
    assert {fault.kind for fault in faults} <= {"manifest", "memory", "internal"}
    assert all("There is no token" in str(fault) for fault in faults if fault.kind == "internal")
