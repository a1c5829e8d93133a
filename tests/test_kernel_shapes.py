"""Kernels against NumPy where shapes and operands are unusual: one output, bare norms, long steps, spans, ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import cpu_session
from cpu_session import FaultError
from kernel_plan import ANY_THREADS, CONTEXT, THREADS, Array, Plan, attention, random_weights, rotate, rounded
from kernel_plan import run as run_plans


@pytest.mark.parametrize("bits", [4, 8])
def test_one_output(tmp_path: Path, bits: int) -> None:
    """A matrix of one row, an eighth of a panel."""
    rng = np.random.default_rng(bits)
    plans, expected = [], []
    for columns, tokens in [(32, 1), (33, 5), (576, 16)]:
        plan = Plan(rng.normal(0, 1, (tokens, columns)).astype(np.float32), 1)
        number, exact = random_weights(plan, rng, 1, columns, bits, "packed")
        y = plan.buffer(1)
        plan.ops.append({"op": "linear", "weights": number, "x": [plan.x, 0], "y": [y, 0]})
        plans.append((plan.end(y), tokens))
        expected.append(np.repeat(rounded(plan.table[:1]) @ exact.T, tokens, axis=0))  # A vocabulary of one token.
    for got, wanted in zip(run_plans(tmp_path, plans), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-3)


NORMS = [(False, False, 1), (True, False, 1), (True, True, 1), (False, False, 3), (True, False, 4), (True, True, 2)]
"""Whether there is a skip, whether a bias, and how many groups."""


@pytest.mark.parametrize("wanted", ["y", "sum"])
def test_norms_and_their_sums(tmp_path: Path, wanted: str) -> None:
    plans, expected = [], []
    for has_skip, has_bias, groups in NORMS if wanted == "y" else [kind for kind in NORMS if kind[0]]:
        for width in (4, 30, 100):
            rng = np.random.default_rng(width)
            whole = width * groups
            plan = Plan(rng.normal(0, 3, (6, whole)).astype(np.float32), whole)
            weight, bias = rng.normal(1, 1, width).astype(np.float32), rng.normal(0, 1, width).astype(np.float32)
            skip, total, y = (plan.buffer(whole) for _ in range(3))
            half = {"op": "map", "activation": "none", "combine": "mul", "a": [plan.x, 0], "scalar": -0.5}
            plan.ops.append(half | {"width": whole, "y": [skip, 0]})
            op: dict[str, Any] = {"op": "norm", "x": [plan.x, 0], "y": [y, 0], "width": width, "groups": groups}
            op |= {"weight": plan.tensor(weight), "epsilon": 1e-5}
            op |= {"skip": [skip, 0], "sum": [total, 0]} if has_skip else {}
            op |= {"bias": plan.tensor(bias)} if has_bias else {}
            plan.ops.append(op)
            plans.append((plan.end(y if wanted == "y" else total), 6))
            rows = plan.table[[token % whole for token in range(6)]].astype(np.float64) * (0.5 if has_skip else 1)
            rows += np.tile(bias, groups) if has_bias else 0
            parts = rows.reshape(6, groups, width)
            normed = parts / np.sqrt((parts**2).mean(axis=2, keepdims=True) + 1e-5) * weight
            expected.append(normed.reshape(6, whole) if wanted == "y" else rows)
    for got, exact in zip(run_plans(tmp_path, plans), expected, strict=True):
        np.testing.assert_allclose(got, exact, rtol=3e-6, atol=3e-6)


@ANY_THREADS
@pytest.mark.parametrize("tokens", [17, 61, 96])
def test_steps_of_more_tokens_than_candidates(tmp_path: Path, threads: int, tokens: int) -> None:
    """A matrix, an activation and a norm; tiles that are full and one that is not, spread over threads."""
    rng = np.random.default_rng(tokens)
    plan = Plan(rng.normal(0, 1, (tokens, 80)).astype(np.float32), 100)
    number, exact = random_weights(plan, rng, 100, 80, 4, "packed")
    product, active, normed = (plan.buffer(100) for _ in range(3))
    plan.ops.append({"op": "linear", "weights": number, "x": [plan.x, 0], "y": [product, 0]})
    act = {"op": "map", "activation": "relu", "combine": "add", "a": [product, 0], "b": [product, 0], "width": 100}
    plan.ops.append(act | {"y": [active, 0]})
    weight = rng.normal(1, 1, 100).astype(np.float32)
    norm = {"op": "norm", "x": [active, 0], "y": [normed, 0], "width": 100, "groups": 1, "epsilon": 1e-5}
    plan.ops.append(norm | {"weight": plan.tensor(weight)})
    (tmp_path / "plan.json").write_text(json.dumps(plan.end(normed)))
    step = {"ids": list(range(tokens)), "positions": 16, "logits": True}
    _, (answer,) = cpu_session.run(tmp_path, [step], threads=threads, architecture={"context": CONTEXT})
    rows = rounded(plan.table[tokens - 16 : tokens]) @ exact.T
    rows += np.maximum(rows, 0)
    wanted = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(answer.logits, wanted, rtol=1e-4, atol=1e-4)


LONG = 768
"""Positions of three spans (web/kernels/attention.h)."""


@pytest.mark.parametrize(("window", "softcap", "interleaved"), [(0, 0.0, False), (300, 0.0, True), (0, 3.0, False)])
def test_attention_over_several_spans(tmp_path: Path, window: int, softcap: float, interleaved: bool) -> None:
    """A token alone, whose spans threads share out and join, and the last of many, which goes through them in turn."""
    dim, many, few = 32, 6, 2
    rng = np.random.default_rng(window)
    plan = Plan(rng.normal(0, 1, (many * dim, (many + 2 * few) * dim)).astype(np.float32), many * dim)
    plan.caches.append({"kv_heads": few, "head_dim": dim})
    angles = rng.normal(0, 3, (LONG, dim // 2))
    cos, sin = (plan.tensor(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    y = plan.buffer(many * dim)
    op = {"op": "attend", "cache": 0, "q": [plan.x, 0], "k": [plan.x, many * dim], "v": [plan.x, (many + few) * dim]}
    op |= {"heads": many, "scale": 0.3, "softcap": softcap, "window": window, "y": [y, 0]}
    plan.ops.append(op | {"rotary": {"cos": cos, "sin": sin, "dim": dim, "interleaved": interleaved}})
    (tmp_path / "plan.json").write_text(json.dumps(plan.end(y) | {"context": LONG}))
    cases, expected = [], []
    for tokens in (257, 512, 513, 700):
        ids = rng.integers(0, many * dim, tokens)
        q, k, v = np.split(plan.table[ids].astype(np.float64).reshape(tokens, -1, dim), [many, many + few], axis=1)
        q, k = (rotate(part, angles[:tokens], interleaved) for part in (q, k))
        expected.append(attention(q, k, v, window, softcap, 0.3)[-1:].reshape(1, -1))
        starts = range(0, tokens - 1, 128)
        alone = [{"ids": ids[start : min(start + 128, tokens - 1)].tolist()} for start in starts]
        alone.append({"ids": ids[-1:].tolist(), "logits": True})
        together = [{"ids": ids[start : start + 100].tolist(), "logits": True} for start in range(0, tokens, 100)]
        for steps in (alone, together):
            size = {"context": LONG}
            cases += [cpu_session.case(tmp_path, steps, threads=threads, architecture=size) for threads in THREADS]
    results = cpu_session.run_all(cases)
    each = len(results) // len(expected)
    for number, result in enumerate(results):
        assert not isinstance(result, FaultError), result
        got, wanted = result[1][-1].logits, expected[number // each]
        assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted)  # 13 bits of keys and values


@ANY_THREADS
def test_low_rank(tmp_path: Path, threads: int) -> None:
    rng = np.random.default_rng(0)
    plan = Plan(rng.normal(0, 1, (16, 64)).astype(np.float32), 50)
    number, exact = random_weights(plan, rng, 50, 64, 8, "none")
    y = plan.buffer(50)
    plan.ops.append({"op": "linear", "weights": number, "x": [plan.x, 0], "y": [y, 0]})
    branch = {"op": "low_rank", "matrix": "m", "rank": 27, "x": [plan.x, 0], "columns": 64, "y": [y, 0], "rows": 50}
    plan.ops.append(branch)
    (tmp_path / "plan.json").write_text(json.dumps(plan.end(y)))
    adapters: dict[str, tuple[Array, Array]] = {}
    for rank in (1, 8, 27):
        a, b = (rng.normal(0, 1, shape).astype(np.float16) for shape in ((64, rank), (rank, 50)))
        save_file({"m.lora_a": a, "m.lora_b": b}, tmp_path / f"{rank}.safetensors")
        adapters[str(rank)] = a, b
    listed = [{"name": name, "file": f"{name}.safetensors"} for name in adapters]
    steps, expected = [], []
    for name, (a, b) in adapters.items():
        for tokens in (1, 7, 16):
            steps.append({"ids": list(range(tokens)), "positions": tokens, "logits": True, "adapter": name})
            x = plan.table[:tokens].astype(np.float64)
            expected.append(rounded(plan.table[:tokens]) @ exact.T + x @ a.astype(np.float64) @ b.astype(np.float64))
    size = {"context": CONTEXT}
    _, answers = cpu_session.run(tmp_path, steps, threads=threads, adapters=listed, architecture=size)
    for answer, wanted in zip(answers, expected, strict=True):
        assert np.abs(answer.logits - wanted).max() < 1e-5 * np.abs(wanted).max()
