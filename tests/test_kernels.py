"""Each kernel against NumPy, in plans of a few operations: random and adversarial shapes, threads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import cpu_session
from cpu_session import FaultError
from kernel_plan import CONTEXT, THREADS, Array, Plan, one_attention, random_weights, rounded, run

LINEARS = [(64, 64, 4), (8, 32, 1), (1, 33, 2), (323, 100, 5), (17, 576, 16), (40, 1, 3), (96, 1536, 1), (7, 31, 15)]


@pytest.mark.parametrize("bits", [4, 8])
def test_linear(tmp_path: Path, bits: int) -> None:
    rng = np.random.default_rng(bits)
    plans, expected = [], []
    for zeros in ("none", "wide", "subnormal", "packed", "float", "half float", "minimum", "minimum_negated"):
        for rows, columns, tokens in LINEARS:
            x = rng.normal(0, 1, (tokens, columns)).astype(np.float32)
            x[0, ::7] *= 1e4
            x[-1] *= 0 if tokens == 5 else 1e-8 if tokens == 3 else 1e20 if tokens == 2 else 1
            plan = Plan(x, rows)
            number, exact = random_weights(plan, rng, rows, columns, bits, zeros)
            bias = rng.normal(0, 1, rows).astype(np.float32)
            plan.weights[number]["bias"] = plan.tensor(bias)
            y = plan.buffer(rows)
            plan.ops.append({"op": "linear", "weights": number, "x": [plan.x, 0], "y": [y, 0]})
            plans.append((plan.end(y), tokens))
            ids = [token % rows for token in range(tokens)]
            quantized = rounded(plan.table[ids])
            # What float32 may lose: a few parts in a million of the largest terms that cancel.
            size = np.abs(quantized).sum(axis=1, keepdims=True) * np.abs(exact).max()
            expected.append((quantized @ exact.T + bias, 1e-5 * size + 1e-5))
    for got, (wanted, tolerance) in zip(run(tmp_path, plans), expected, strict=True):
        assert (np.abs(got - wanted) <= tolerance).all()


def norm(kind: str, x: Array, weight: Array, shift: Array | float, groups: int) -> Array:
    """float64 RMSNorm ("norm") or LayerNorm of each of ``groups`` runs of a row of ``x``."""
    parts = x.reshape(len(x), groups, -1)
    if kind == "layer_norm":
        parts = parts - parts.mean(axis=2, keepdims=True)
    y = parts / np.sqrt((parts**2).mean(axis=2, keepdims=True) + 1e-6) * weight + shift
    return y.reshape(x.shape)


NORMS = [(1, 1), (3, 1), (32, 1), (100, 1), (576, 1), (30, 4), (7, 3)]
"""Width and groups."""


@pytest.mark.parametrize("kind", ["norm", "layer_norm"])
def test_norm(tmp_path: Path, kind: str) -> None:
    plans, expected = [], []
    for width, groups in NORMS:
        rng = np.random.default_rng(width)
        x = rng.normal(0, 3, (6, width * groups)).astype(np.float32)
        x[1] = 0
        x[2] *= 1e15
        x[3] += 1e4
        weight, bias, shift = (rng.normal(1, 1, width).astype(np.float32) for _ in range(3))
        for vectors in ({}, {"shift": shift}, {"bias": bias}, {"bias": bias, "shift": shift}):
            if (groups > 1 and "bias" in vectors) or (kind == "norm" and "shift" in vectors):
                continue
            plan = Plan(x, width * groups)
            y = plan.buffer(width * groups)
            op = {"op": kind, "x": [plan.x, 0], "y": [y, 0], "width": width, "groups": groups, "epsilon": 1e-6}
            op |= {"weight": plan.tensor(weight)} | {key: plan.tensor(each) for key, each in vectors.items()}
            rows = plan.table[[token % (width * groups) for token in range(6)]].astype(np.float64)
            if groups == 1:
                op |= {"skip": [plan.x, 0], "sum": [plan.buffer(width), 0]}
                rows = 2 * rows + vectors.get("bias", 0)
            plan.ops.append(op)
            plans.append((plan.end(y), 6))
            wanted = norm(kind, rows, weight, vectors.get("shift", 0.0), groups)
            # The sum with a bias is rounded to float32 before the norm.
            lost = "bias" in vectors and 1e-7 * np.abs(rows).max(axis=1, keepdims=True) / np.sqrt(
                rows.var(axis=1, keepdims=True) + 1e-6
            )
            expected.append((wanted, 3e-6 * np.abs(wanted) + 2e-6 + lost * np.abs(weight).max()))
    for got, (wanted, tolerance) in zip(run(tmp_path, plans), expected, strict=True):
        assert (np.abs(got - wanted) <= tolerance).all()


def erf(x: Array) -> Array:
    return np.vectorize(math.erf)(x)


ACTIVATIONS = {
    "none": lambda x: x,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + erf(x / 2**0.5)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
}
COMBINES = {"none": lambda a, _: a, "mul": np.multiply, "add": np.add, "sub": np.subtract, "div": np.divide}


def test_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plans, expected = [], []
    for activation, function in ACTIVATIONS.items():
        x = rng.normal(0, 4, (7, 70)).astype(np.float32)
        x[0, :4] = [-80, 80, 600, -600]
        vector = rng.uniform(0.5, 2, 70).astype(np.float32)
        for combine, both in COMBINES.items():
            for second in ("b", "vector", "scalar"):
                if combine == "div" and second == "b":
                    continue
                plan = Plan(x, 70)
                rows = plan.table[:7].astype(np.float64)
                fields = {"b": [plan.x, 0], "vector": plan.tensor(vector), "scalar": 1.5}
                y = plan.buffer(70)
                op = {"op": "map", "activation": activation, "combine": combine, "a": [plan.x, 0], "width": 70}
                plan.ops.append(op | {"y": [y, 0], second: fields[second]})
                plans.append((plan.end(y), 7))
                expected.append(both(function(rows), {"b": rows, "vector": vector, "scalar": 1.5}[second]))
    for got, wanted in zip(run(tmp_path, plans), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=3e-6, atol=2e-5)


def test_attention(tmp_path: Path) -> None:
    plans, expected = [], []
    kinds = [(0, 0.0, False), (5, 0.0, True), (0, 3.0, False)]
    for dim, rotary in [(8, 0), (64, 64), (80, 32), (40, 20), (256, 256)]:
        for many, few in [(1, 1), (9, 3)] if dim > 64 else [(3, 1), (4, 2)]:
            for window, softcap, interleaved in kinds:
                plan, wanted = one_attention(dim, rotary, many, few, window, softcap, interleaved)
                plans.append((plan, len(wanted)))
                expected.append(wanted)
    for got, wanted in zip(run(tmp_path, plans), expected, strict=True):
        assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted)  # 13 bits of keys and values


def test_top_k_breaks_ties_by_the_lower_id(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases, tables = [], []
    for width in (1, 5, 64, 65, 1000):
        x = np.sign(rng.normal(0, 1, (3, width))).astype(np.float32) * rng.integers(1, 4, (3, 1)).astype(np.float32)
        plan, folder = Plan(x, width), tmp_path / str(width)
        folder.mkdir()
        (folder / "plan.json").write_text(json.dumps(plan.end(plan.x)))
        ids = [0, 1 % width, 2 % width]
        steps = [{"ids": ids, "positions": 3, "logits": True}]
        for threads in THREADS:
            size = {"context": CONTEXT}
            cases.append(cpu_session.case(folder, steps, threads=threads, architecture=size))
            tables.append(plan.table[ids])
    for result, table in zip(cpu_session.run_all(cases), tables, strict=True):
        assert not isinstance(result, FaultError), result
        answer = result[1][0]
        np.testing.assert_allclose(answer.logits, table, rtol=1e-6)
        assert np.array_equal(answer.ids, np.argsort(-answer.logits, axis=1, kind="stable")[:, :64])
