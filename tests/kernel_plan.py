"""Plans of a few operations for tests of the kernels, and what their attention has to compute, in float64."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import cpu_session
from cpu_session import FaultError

Array = npt.NDArray[Any]
THREADS = [1, 3]
"""Alone, and as many as share nothing evenly. More than there are cores wait for each other, and tests with them."""
ANY_THREADS = pytest.mark.parametrize("threads", THREADS)
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


def run(folder: Path, plans: list[tuple[dict[str, Any], int]]) -> list[Array]:
    """For each (plan, tokens): the last rows for tokens 0 … tokens - 1 (at most 16), float32 [tokens, width].

    They are the same, bit for bit, on any of THREADS.
    """
    cases = []
    for number, (plan, tokens) in enumerate(plans):
        (folder / str(number)).mkdir()
        (folder / str(number) / "plan.json").write_text(json.dumps(plan))
        steps = [{"ids": [token % plan["vocabulary"] for token in range(tokens)], "positions": tokens, "logits": True}]
        for threads in THREADS:
            size = {"context": CONTEXT}
            cases.append(cpu_session.case(folder / str(number), steps, threads=threads, architecture=size))
    logits = []
    for result in cpu_session.run_all(cases):
        assert not isinstance(result, FaultError), result
        logits.append(result[1][0].logits)
    for first in range(0, len(logits), len(THREADS)):
        alone, *others = logits[first : first + len(THREADS)]
        assert all(np.array_equal(other, alone) for other in others), plans[first // len(THREADS)][0]["ops"]
    return logits[:: len(THREADS)]


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
    if zeros == "subnormal":
        scales = (rng.integers(-1023, 1024, (rows, groups)) * 2.0**-24).astype(np.float16)
    if zeros in ("wide", "float"):
        scales = rng.normal(0, 1, (rows, groups)).astype(np.float32)
    codes = values if bits == 8 else values[..., ::2] | values[..., 1::2] << 4
    more: dict[str, Any] = {}
    offset = -scales.astype(np.float64) * (1 << bits - 1)
    if zeros.startswith("minimum"):
        minima = rng.normal(0, 8, scales.shape).astype(np.float16)
        sign = -1 if zeros.endswith("negated") else 1
        more["zeros"], offset = {"kind": zeros, "tensor": plan.tensor(minima)}, sign * minima.astype(np.float64)
    if zeros in ("float", "half float"):
        points = rng.normal(8, 2, scales.shape).astype(np.float32 if zeros == "float" else np.float16)
        more["zeros"], offset = {"kind": "float", "tensor": plan.tensor(points)}, -scales.astype(np.float64) * points
    if zeros == "packed":
        points = rng.integers(0, 1 << bits, (rows, groups + groups % 2), np.uint8)
        packed = points[:, :groups] if bits == 8 else points[:, ::2] | points[:, 1::2] << 4
        more["zeros"] = {"kind": zeros, "tensor": plan.tensor(np.ascontiguousarray(packed))}
        offset = -scales.astype(np.float64) * points[:, :groups]
    exact = values * scales.astype(np.float64)[..., None] + offset[..., None]
    return plan.add_weights(rows, columns, bits, codes, scales, **more), exact.reshape(rows, -1)[:, :columns]


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
