"""Longrope on the CPU kernels: which of its two tables a step turns by, and what that means for drafts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import cpu_session
from kernel_plan import ANY_THREADS, CONTEXT, Plan, attention, rotate


@ANY_THREADS
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_step_past_the_switch_turns_by_the_long_table(tmp_path: Path, threads: int, interleaved: bool) -> None:
    """All tokens of a step by the table of its total length; keys that are stored stay as they are."""
    dim, steps, switch = 16, [7, 3, 1, 5], 10
    rng = np.random.default_rng(0)
    plan = Plan(rng.normal(0, 1, (16, 3 * dim)).astype(np.float32), dim)
    plan.caches.append({"kv_heads": 1, "head_dim": dim})
    angles = rng.normal(0, 3, (2, CONTEXT, 4))
    cos, sin = (plan.tensor(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    y = plan.buffer(dim)
    op = {"op": "attend", "cache": 0, "q": [plan.x, 0], "k": [plan.x, dim], "v": [plan.x, 2 * dim], "heads": 1}
    op |= {"rotary": {"cos": cos, "sin": sin, "dim": 8, "interleaved": interleaved, "switch": switch}}
    plan.ops.append(op | {"scale": 1.0, "softcap": 0, "window": 0, "y": [y, 0]})
    (tmp_path / "plan.json").write_text(json.dumps(plan.end(y)))
    ends = np.cumsum(steps)
    asked = [
        {"ids": list(range(end - n, end)), "positions": n, "logits": True} for end, n in zip(ends, steps, strict=True)
    ]
    asked = [step | {"ids": [token % dim for token in step["ids"]]} for step in asked]
    info, answers = cpu_session.run(tmp_path, asked, threads=threads, architecture={"context": CONTEXT})
    assert info["drafts"] == 0  # Checking drafts in one step would turn them otherwise than one step each.
    table = np.repeat([int(end > switch) for end in ends], steps)
    assert table.tolist() == [0] * 10 + [1] * 6
    turned = angles[table, np.arange(16)]
    parts = plan.table[np.arange(16) % dim].astype(np.float64).reshape(16, 3, dim)
    q, k, v = np.split(parts, 3, axis=1)
    q, k = (rotate(part, turned, interleaved) for part in (q, k))
    wanted = attention(q, k, v, 0, 0, 1.0).reshape(16, -1)
    got = np.concatenate([answer.logits for answer in answers])
    assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted)
