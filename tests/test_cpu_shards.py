"""Shards of any bytes, their hashes true: refused in words or computed with; nothing traps, nothing hangs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import cpu_session
import kernel_graph
from cpu_session import FaultError
from exporter import graph, plan
from kernel_graph import Array
from test_plan import SHAPES

NAMES = ["llama", "symmetric", "packed_zeros", "eight_bits_zeros", "half_blocks", "four_bit_factors", "head_norm"]
SECONDS = 600
"""For a hundred models, each of which takes a few milliseconds: a hang, on however busy a machine."""


def random(rng: np.random.Generator, shard: Array) -> Array:
    return rng.integers(0, 256, len(shard), np.uint8)


def finite(rng: np.random.Generator, shard: Array) -> Array:
    """Random, but no float16 or float32 in it is infinite or NaN: most get past the loader, up to 65,504."""
    halves = random(rng, shard[: len(shard) & ~1]).view(np.uint16)
    halves[halves & 0x7C00 == 0x7C00] ^= 0x0400
    return np.concatenate([halves.view(np.uint8), shard[len(shard) & ~1 :]])


def filled(number: float) -> Array:
    return np.array([number], np.float16).view(np.uint8)


def flipped(rng: np.random.Generator, shard: Array) -> Array:
    """Some bits of the good shard are others."""
    copy = shard.copy()
    copy[rng.integers(0, len(shard), 20)] ^= (1 << rng.integers(0, 8, 20)).astype(np.uint8)
    return copy


def shards(rng: np.random.Generator, good: Array) -> dict[str, Array]:
    """Bad shards by what is wrong with them, and the good one."""
    found = {"good": good}
    for number in range(3):
        found |= {f"{make.__name__} {number}": make(rng, good) for make in (random, finite, flipped)}
    for number in (np.nan, np.inf, -np.inf, 65504, -65504, 6e-8, 0):
        found[f"all {number}"] = np.resize(filled(number), len(good))
    return found


def test_shards_of_any_bytes_are_refused_or_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases, told = [], []
    for name in NAMES:
        (tmp_path / name).mkdir()
        model = kernel_graph.build(tmp_path / name, SHAPES[name])
        plan.write(graph.load(model), tmp_path / name / "plan.json")
        good = np.fromfile(tmp_path / name / kernel_graph.SHARD, np.uint8)
        for wrong, data in shards(rng, good).items():
            folder = tmp_path / f"{name}, {wrong}"
            folder.mkdir()
            (folder / "plan.json").symlink_to(tmp_path / name / "plan.json")
            data.tofile(folder / kernel_graph.SHARD)
            steps = [{"ids": [1, 2, 3], "positions": 2}, {"ids": [4]}]
            cases.append(cpu_session.case(folder, steps, threads=1 + len(cases) % 2))
            told.append(folder.name)
    results = dict(zip(told, cpu_session.run_all(cases, timeout=SECONDS), strict=True))
    for what, result in results.items():
        if isinstance(result, FaultError):
            assert result.kind == "manifest" and "finite numbers" in str(result), (what, result)
        else:
            assert all(np.isfinite(answer.top).all() for answer in result[1]), what
    for name in NAMES:
        assert not isinstance(results[f"{name}, good"], FaultError)
        for number in ("nan", "inf", "-inf"):
            assert isinstance(results[f"{name}, all {number}"], FaultError), (name, number)
    computed = [what for what, result in results.items() if not isinstance(result, FaultError)]
    assert any("finite" in what for what in computed), "the kernels saw none of the random shards"
