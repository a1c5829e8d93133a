"""Each kernel against NumPy, in plans of a few operations: random and adversarial shapes, both builds, threads."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import cpu_session
from cpu_session import FaultError

Array = npt.NDArray[Any]
BUILDS = [("relaxed", 1), ("relaxed", 4), ("plain", 1), ("plain", 2)]
BUILD = pytest.mark.parametrize(("build", "threads"), BUILDS)
CONTEXT = 96


class Plan:
    """A plan under construction; tensors are inline. Token t's row of x is row t of ``table``."""

    def __init__(self, table: Array, width: int) -> None:
        """``table`` float32 [tokens, columns], which becomes 8-bit weights whose offsets carry the exact values."""
        self.tensors: list[dict[str, Any]] = []
        self.weights: list[dict[str, Any]] = []
        self.buffers: list[dict[str, Any]] = []
        self.caches: list[dict[str, int]] = []
        self.ops: list[dict[str, Any]] = []
        self.width = width
        rows, columns = max(len(table), width), table.shape[1]
        self.table = np.zeros((rows, columns), np.float32)
        self.codes = np.full((rows, -(-columns // 32) * 32), 128, np.uint8)
        scales = np.zeros((rows, self.codes.shape[1] // 32), np.float32)
        for row, values in enumerate(table):
            for block in range(scales.shape[1]):
                part = values[block * 32 : block * 32 + 32]
                scale = np.float32(np.abs(part).max() / 127) if np.abs(part).max() else np.float32(1)
                codes = np.rint(part / scale)
                scales[row, block] = scale
                self.codes[row, block * 32 : block * 32 + len(part)] = (codes + 128).astype(np.uint8)
                self.table[row, block * 32 : block * 32 + len(part)] = codes.astype(np.float32) * scale
        self.x = self.buffer(columns)
        weights = self.add_weights(rows, columns, 8, self.codes, scales)
        self.ops.append({"op": "embed", "weights": weights, "y": [self.x, 0]})

    def tensor(self, array: Array) -> int:
        data = base64.b64encode(array.tobytes()).decode()
        self.tensors.append({"data": data, "dtype": str(array.dtype), "elements": array.size})
        return len(self.tensors) - 1

    def buffer(self, width: int, rows: str = "tokens") -> int:
        self.buffers.append({"width": width, "rows": rows})
        return len(self.buffers) - 1

    def add_weights(self, rows: int, columns: int, bits: int, codes: Array, scales: Array, **more: Any) -> int:
        entry = {"rows": rows, "columns": columns, "bits": bits, "block": 32}
        self.weights.append(entry | {"values": self.tensor(codes), "scales": self.tensor(scales)} | more)
        return len(self.weights) - 1

    def end(self, y: int) -> dict[str, Any]:
        asked = self.buffer(self.width, "asked")
        self.ops.append({"op": "pick", "x": [y, 0], "y": [asked, 0], "width": self.width})
        self.ops.append({"op": "top_k", "x": [asked, 0], "width": self.width})
        keys = ("tensors", "weights", "buffers", "ops")
        caches = self.caches or [{"kv_heads": 1, "head_dim": 8}]
        plan = {key: getattr(self, key) for key in keys} | {"caches": caches, "format": 1, "context": CONTEXT}
        return plan | {"vocabulary": self.width, "top_k": min(64, self.width)}


def run(folder: Path, plans: list[tuple[dict[str, Any], int]], build: str, threads: int) -> list[Array]:
    """For each (plan, tokens): the last rows for tokens 0 … tokens - 1 (at most 16), float32 [tokens, width]."""
    cases = []
    for number, (plan, tokens) in enumerate(plans):
        (folder / str(number)).mkdir()
        (folder / str(number) / "plan.json").write_text(json.dumps(plan))
        steps = [{"ids": [token % plan["vocabulary"] for token in range(tokens)], "positions": tokens, "logits": True}]
        size = {"context": CONTEXT}
        cases.append(cpu_session.case(folder / str(number), steps, build=build, threads=threads, architecture=size))
    logits = []
    for result in cpu_session.run_all(cases):
        assert not isinstance(result, FaultError), result
        logits.append(result[1][0].logits)
    return logits


def rounded(x: Array) -> Array:
    """``x`` [rows, columns] as block-quantized activations give it back, float64."""
    top = 32767
    result = np.zeros(x.shape)
    for block in range(0, x.shape[1], 32):
        part = x[:, block : block + 32]
        most = np.abs(part).max(axis=1, keepdims=True)
        factor = np.where(most > 1e-20, np.float32(top) / np.maximum(most, np.float32(1e-20)), 0).astype(np.float32)
        result[:, block : block + 32] = np.rint(part * factor).astype(np.float64) * (most.astype(np.float64) / top)
    return result


def random_weights(
    plan: Plan, rng: np.random.Generator, rows: int, columns: int, bits: int, zeros: str
) -> tuple[int, Array]:
    """Adds a matrix; its number and its float64 values."""
    groups = -(-columns // 32)
    values = rng.integers(0, 1 << bits, (rows, groups, 32), np.uint8)
    scales = rng.normal(0, 1, (rows, groups)).astype(np.float16)
    scales[rng.random(scales.shape) < 0.1] = 0
    codes = values if bits == 8 else values[..., ::2] | values[..., 1::2] << 4
    more: dict[str, Any] = {}
    offset = -scales.astype(np.float64) * (1 << bits - 1)
    if zeros == "minimum":
        minima = rng.normal(0, 8, scales.shape).astype(np.float16)
        more["zeros"], offset = {"kind": zeros, "tensor": plan.tensor(minima)}, minima.astype(np.float64)
    if zeros == "float":
        points = rng.normal(8, 2, scales.shape).astype(np.float32)
        more["zeros"], offset = {"kind": zeros, "tensor": plan.tensor(points)}, -scales.astype(np.float64) * points
    if zeros == "packed":
        points = rng.integers(0, 1 << bits, (rows, groups + groups % 2), np.uint8)
        packed = points[:, :groups] if bits == 8 else points[:, ::2] | points[:, 1::2] << 4
        more["zeros"] = {"kind": zeros, "tensor": plan.tensor(np.ascontiguousarray(packed))}
        offset = -scales.astype(np.float64) * points[:, :groups]
    exact = values * scales.astype(np.float64)[..., None] + offset[..., None]
    return plan.add_weights(rows, columns, bits, codes, scales, **more), exact.reshape(rows, -1)[:, :columns]


LINEARS = [(64, 64, 4), (8, 32, 1), (1, 33, 2), (323, 100, 5), (17, 576, 16), (40, 1, 3), (96, 1536, 1), (7, 31, 15)]


@BUILD
@pytest.mark.parametrize("bits", [4, 8])
def test_linear(tmp_path: Path, build: str, threads: int, bits: int) -> None:
    rng = np.random.default_rng(bits)
    plans, expected = [], []
    for zeros in ("none", "packed", "float", "minimum"):
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
    for got, (wanted, tolerance) in zip(run(tmp_path, plans, build, threads), expected, strict=True):
        assert (np.abs(got - wanted) <= tolerance).all()


@BUILD
def test_norm(tmp_path: Path, build: str, threads: int) -> None:
    plans, expected = [], []
    for width in (1, 3, 32, 100, 576):
        rng = np.random.default_rng(width)
        x = rng.normal(0, 3, (5, width)).astype(np.float32)
        x[1] = 0
        x[2] *= 1e15
        weight = rng.normal(1, 1, width).astype(np.float32)
        plan = Plan(x, width)
        total, y = plan.buffer(width), plan.buffer(width)
        skip = {"op": "norm", "x": [plan.x, 0], "skip": [plan.x, 0], "sum": [total, 0], "y": [y, 0], "width": width}
        plan.ops.append(skip | {"weight": plan.tensor(weight), "epsilon": 1e-6, "groups": 1})
        plans.append((plan.end(y), 5))
        doubled = 2 * plan.table[[token % width for token in range(5)]].astype(np.float64)
        expected.append(doubled / np.sqrt((doubled**2).mean(axis=1, keepdims=True) + 1e-6) * weight)
    for got, wanted in zip(run(tmp_path, plans, build, threads), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6)


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


@BUILD
def test_map(tmp_path: Path, build: str, threads: int) -> None:
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
    for got, wanted in zip(run(tmp_path, plans, build, threads), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=3e-6, atol=2e-5)


def attention(q: Array, k: Array, v: Array, window: int, softcap: float, scale: float) -> Array:
    """float64 attention of q [tokens, heads, dim] on k, v [tokens, kv_heads, dim] of the same tokens."""
    tokens, heads, dim = q.shape
    out = np.zeros((tokens, heads, dim))
    for t in range(tokens):
        for head in range(heads):
            first = max(0, t - window + 1) if window else 0
            keys, values = (part[first : t + 1, head * k.shape[1] // heads] for part in (k, v))
            scores = keys @ q[t, head] * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.exp(scores - scores.max())
            out[t, head] = weights @ values / weights.sum()
    return out


@BUILD
def test_attention(tmp_path: Path, build: str, threads: int) -> None:
    plans, expected = [], []
    kinds = [(0, 0.0, False), (5, 0.0, True), (0, 3.0, False)]
    for dim, rotary in [(8, 0), (64, 64), (80, 32), (40, 20), (256, 256)]:
        for many, few in [(1, 1), (9, 3)] if dim > 64 else [(3, 1), (4, 2)]:
            for window, softcap, interleaved in kinds:
                plan, wanted = one_attention(dim, rotary, many, few, window, softcap, interleaved)
                plans.append((plan, len(wanted)))
                expected.append(wanted)
    for got, wanted in zip(run(tmp_path, plans, build, threads), expected, strict=True):
        assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted)  # 13 bits of keys and values


def one_attention(
    dim: int, rotary: int, many: int, few: int, window: int, softcap: float, interleaved: bool, tokens: int = 16
) -> tuple[dict[str, Any], Array]:
    """A plan of one attention, and its output in float64 [tokens, many · dim]."""
    rng = np.random.default_rng(dim)
    plan = Plan(rng.normal(0, 1, (tokens, (many + 2 * few) * dim)).astype(np.float32), many * dim)
    plan.caches.append({"kv_heads": few, "head_dim": dim})
    y, scale = plan.buffer(many * dim), 1.7 / dim**0.5
    op = {"op": "attend", "cache": 0, "q": [plan.x, 0], "k": [plan.x, many * dim], "v": [plan.x, (many + few) * dim]}
    op |= {"heads": many, "scale": scale, "softcap": softcap, "window": window, "y": [y, 0]}
    angles = rng.normal(0, 3, (CONTEXT, rotary // 2))
    if rotary:
        tables = [plan.tensor(f(angles).astype(np.float32)) for f in (np.cos, np.sin)]
        op["rotary"] = {"cos": tables[0], "sin": tables[1], "dim": rotary, "interleaved": interleaved}
    plan.ops.append(op)
    parts = plan.table[[token % (many * dim) for token in range(tokens)]].astype(np.float64)
    q, k, v = np.split(parts.reshape(tokens, -1, dim), [many, many + few], axis=1)
    q, k = (rotate(part, angles[:tokens], interleaved) for part in (q, k))
    return plan.end(y), attention(q, k, v, window, softcap, scale).reshape(tokens, -1)


def rotate(x: Array, angles: Array, interleaved: bool) -> Array:
    half = angles.shape[1]
    first, second = np.arange(half), np.arange(half) + half
    if interleaved:
        first, second = 2 * np.arange(half), 2 * np.arange(half) + 1
    y = x.copy()
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


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
        for build, threads in BUILDS:
            size = {"context": CONTEXT}
            cases.append(cpu_session.case(folder, steps, build=build, threads=threads, architecture=size))
            tables.append(plan.table[ids])
    for result, table in zip(cpu_session.run_all(cases), tables, strict=True):
        assert not isinstance(result, FaultError), result
        answer = result[1][0]
        np.testing.assert_allclose(answer.logits, table, rtol=1e-6)
        assert np.array_equal(answer.ids, np.argsort(-answer.logits, axis=1, kind="stable")[:, :64])
