"""Opening the CPU session: memory that is refused, helpers that are absent or late, files that go, other kernels."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpu_session
import kernels
from cpu_session import Answer, FaultError
from kernel_plan import CONTEXT
from test_cpu_faults import small_plan

STEPS = [{"ids": [1, 2, 3], "logits": True}]
LONG = 65536
"""Tokens of context for which the KV cache outweighs everything else."""


def write(folder: Path, *, context: int = CONTEXT, shard: bool = False) -> dict[str, Any]:
    """The small plan, for ``context``; with ``shard`` all its tensors lie in w.bin. What to give ``case``."""
    plan = small_plan() | {"context": context}
    if context != CONTEXT:
        del plan["ops"][2]["rotary"]  # Its tables are of CONTEXT positions.
    data = bytearray()
    for tensor in plan["tensors"] if shard else []:
        tensor |= {"file": "w.bin", "offset": len(data)}
        data += base64.b64decode(tensor.pop("data"))
    if shard:
        (folder / "w.bin").write_bytes(data)
    (folder / "plan.json").write_text(json.dumps(plan))
    return {"architecture": {"context": context}}


def opened(*cases: dict[str, Any]) -> list[tuple[dict[str, Any], list[Answer]]]:
    """What every case gives; none may fault."""
    results = []
    for result in cpu_session.run_all(list(cases)):
        assert not isinstance(result, FaultError), result
        results.append(result)
    return results


def test_shared_memory_that_is_not_to_be_had_costs_threads_before_context(tmp_path: Path) -> None:
    options = write(tmp_path, context=LONG)
    case = cpu_session.case(tmp_path, STEPS, threads=3, **options)
    (many, first), (one, second) = opened(case, case | {"limits": {"shared": False}})
    assert (many["context"], many["runtime"]) == (LONG, "cpu 3")
    assert (one["context"], one["runtime"]) == (LONG, "cpu 1")
    assert np.array_equal(first[0].logits, second[0].logits)


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_that_is_not_to_be_had_halves_the_context_and_is_said_at_last(tmp_path: Path, threads: int) -> None:
    """A shared memory counts by what it may come to have: it must not ask for more than it needs."""
    case = cpu_session.case(tmp_path, STEPS, threads=threads, **write(tmp_path, context=LONG))
    ((whole, answers),) = opened(case)
    pages = whole["bytes"] // 65536
    exactly, less = ({"limits": {"pages": most}} for most in (pages, pages - 20))
    (same, _), (half, others) = opened(case | exactly, case | less)
    assert (same["context"], same["bytes"], same["runtime"]) == (LONG, whole["bytes"], f"cpu {threads}")
    assert half["context"] == LONG // 2 and half["bytes"] < whole["bytes"]
    assert np.array_equal(answers[0].logits, others[0].logits)
    (fault,) = cpu_session.run_all([case | {"limits": {"pages": 16}}])
    assert isinstance(fault, FaultError) and fault.kind == "memory"
    assert "MiB in one piece, which is not to be had." in str(fault)


def test_what_fails_to_load_leaves_no_helper_behind(tmp_path: Path) -> None:
    """Each would keep the whole memory, beside that of the runtime that takes over."""
    options = write(tmp_path, shard=True)
    files = [{"name": path.name, "bytes": path.stat().st_size} for path in tmp_path.iterdir()]
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:-1])
    (fault,) = cpu_session.run_all([cpu_session.case(tmp_path, [], threads=3, files=files, **options)])
    assert isinstance(fault, FaultError) and fault.kind == "corrupt"
    assert fault.left == 0


def test_the_session_says_how_many_threads_it_has(tmp_path: Path) -> None:
    case = cpu_session.case(tmp_path, STEPS, threads=3, **write(tmp_path))
    (all_there, first), (none_came, second) = opened(case, case | {"helpers": "absent"})
    assert (all_there["runtime"], none_came["runtime"]) == ("cpu 3", "cpu 1")
    assert np.array_equal(first[0].logits, second[0].logits)


def test_a_helper_that_is_late_claims_nothing_of_a_step_that_is_over(tmp_path: Path) -> None:
    """Not even where an adapter has meanwhile changed how many tasks there are."""
    from safetensors.numpy import save_file

    options = write(tmp_path)
    a, b = np.ones((64, 4), np.float16), np.ones((4, 64), np.float16)
    save_file({"m.lora_a": a, "m.lora_b": b}, tmp_path / "a.safetensors")
    options["adapters"] = [{"name": "a", "file": "a.safetensors"}]
    steps = [{"ids": [1, 2, 3], "adapt_after": "a"}]
    ((info, _),) = opened(cpu_session.case(tmp_path, steps, threads=2, **options) | {"helpers": "late"})
    assert info["claimed"] == 0


@pytest.mark.parametrize("downloaded", ["memory", "place"])
def test_files_in_memory_go_once_the_session_has_them(tmp_path: Path, downloaded: str) -> None:
    """Those of a visit without a place, and those that a place has lost: the loader's worker cannot see these."""
    case = cpu_session.case(tmp_path, STEPS, threads=2, **write(tmp_path, shard=True))
    (kept, first), (gone, second) = opened(case, case | {"downloaded": downloaded})
    assert kept["runtime"] == gone["runtime"] == "cpu 2"
    assert np.array_equal(first[0].logits, second[0].logits)
    assert gone["files"] == ["plan.json"]


def test_openings_are_of_the_very_kernels_that_computed_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And kernels with more of the memory for themselves than the session leaves them are refused."""
    case = cpu_session.case(tmp_path, STEPS, **write(tmp_path))
    link = kernels.LINK[0]
    monkeypatch.setattr(kernels, "LINK", [link.replace(",--strip-all", "")])
    kernels.build(tmp_path / "other" / "kernels")
    monkeypatch.setattr(kernels, "LINK", [f"{link},-z,stack-size=2097152"])
    kernels.build(tmp_path / "large" / "kernels")
    (one, _), (again, _), (other, _) = opened(case, case, case | {"base": str(tmp_path / "other")})
    assert one["kernels"] == again["kernels"] != other["kernels"]
    (fault,) = cpu_session.run_all([case | {"base": str(tmp_path / "large")}])
    assert isinstance(fault, FaultError) and "of another version" in str(fault)
