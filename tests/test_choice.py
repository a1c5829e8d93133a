"""sessions/choose.js as a table: from the facts of a device to the model, the runtime, and the context."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import node_module
from budget import RUNTIMES
from node_module import NodeModule

CHOOSE = Path(__file__).resolve().parent.parent / "web" / "sessions" / "choose.js"
GIB = 1 << 30
MIB = 1 << 20

FACTS: dict[str, Any] = {
    "adapter": None, "jspi": False, "isolated": True, "cores": 2, "memory": 8 * GIB, "room": 10 * GIB, "simd": True,
    "int4": True, "frugal": False,
}  # fmt: skip
GPU = {"kind": "hardware", "largest": 2 * GIB, "wrong": []}
JSPI = {"adapter": GPU, "jspi": True}


def manifest(slug: str, weights: int, *, context: int = 2048, kv_heads: int = 2, **changes: Any) -> dict[str, Any]:
    """A manifest's part that is looked at: ``weights`` bytes in shards of 64 MiB, 16 layers, head_dim 64."""
    shards = [64 * MIB] * (weights // (64 * MIB)) + [weights % (64 * MIB)] * (weights % (64 * MIB) > 0)
    names = [f"weights-{i:02}.bin" for i in range(len(shards))]
    small = {"model.onnx": 1000, "model-webgpu.onnx": 2000, "plan.json": 300, "tokenizer.json": 4000}
    return {
        "slug": slug,
        "title": slug.title(),
        "files": [
            {"name": name, "bytes": size, "sha256": f"sha of {name}"}
            for name, size in [*zip(names, shards, strict=True), *small.items()]
        ],
        "weights": names,
        "graphs": {"wasm": "model.onnx", "webgpu": "model-webgpu.onnx"},
        "plan": "plan.json",
        "tokenizer": "tokenizer.json",
        "kv": {"layers": 16, "kv_heads": kv_heads, "head_dim": 64},
        "architecture": {"context": context, "heads": 8, "hidden": 512},
    } | changes


SMALL, LARGE, HUGE = manifest("small", 100 * MIB), manifest("large", 700 * MIB), manifest("huge", 6000 * MIB)


@pytest.fixture(scope="module")
def node() -> Iterator[NodeModule]:
    with node_module.loaded(CHOOSE) as module:
        yield module


@pytest.mark.parametrize(
    ("changes", "forced", "expected"),
    [
        ({}, "", [("cpu", "", 2), ("wasm", "wasm", 2)]),
        ({"isolated": False}, "", [("cpu", "", 1), ("wasm", "wasm", 1)]),
        (JSPI, "", [("webgpu", "jspi", 1), ("cpu", "", 2), ("wasm", "wasm", 2)]),
        ({"adapter": GPU}, "webgpu", [("webgpu", "webgpu", 1)]),
        ({"adapter": GPU | {"kind": "software"}}, "", [("cpu", "", 2), ("wasm", "wasm", 2)]),
        (JSPI | {"adapter": GPU | {"kind": "software"}}, "webgpu", [("webgpu", "jspi", 1)]),
        (JSPI | {"adapter": GPU | {"wrong": ["sha of model-webgpu.onnx"]}}, "", [("cpu", "", 2), ("wasm", "wasm", 2)]),
        (JSPI | {"adapter": GPU | {"wrong": ["sha of model-webgpu.onnx"]}}, "webgpu", [("webgpu", "jspi", 1)]),
        (JSPI | {"adapter": GPU | {"wrong": ["of another"]}}, "webgpu", [("webgpu", "jspi", 1)]),
        ({"int4": False}, "", [("wasm", "wasm", 2)]),
        ({"int4": False}, "cpu", []),
        ({"cores": 16}, "wasm", [("wasm", "wasm", 8)]),
        ({"cores": 6}, "cpu", [("cpu", "", 3)]),
        ({"cores": 64}, "cpu", [("cpu", "", 8)]),
        ({}, "webgpu", []),
    ],
)
def test_the_runtimes_to_try(
    node: NodeModule, changes: dict[str, Any], forced: str, expected: list[tuple[str, str, int]]
) -> None:
    got = node.ask("sessions", FACTS | changes, SMALL, forced)
    assert [(session["name"], session["build"], session["threads"]) for session in got["list"]] == expected
    assert got["refusal"] == ("" if expected else "runtime")
    assert all(session["context"] == 2048 for session in got["list"])


def test_a_model_without_a_plan_runs_on_onnx_runtime(node: NodeModule) -> None:
    got = node.ask("sessions", FACTS, SMALL | {"plan": ""})
    assert [session["name"] for session in got["list"]] == ["wasm"]


@pytest.mark.parametrize("forced", ["", "webgpu", "cpu", "wasm"])
def test_a_browser_without_simd_is_told_so(node: NodeModule, forced: str) -> None:
    got = node.ask("sessions", FACTS | JSPI | {"simd": False}, SMALL, forced)
    assert (got["list"], got["refusal"]) == ([], "browser")


def test_what_is_dropped_for_garbage_is_said(node: NodeModule) -> None:
    wrong = JSPI | {"adapter": GPU | {"wrong": ["sha of model-webgpu.onnx"]}}
    assert node.ask("sessions", FACTS | wrong, SMALL)["dropped"] == "wrong"
    assert node.ask("sessions", FACTS | JSPI, SMALL)["dropped"] == ""


@pytest.mark.parametrize(
    ("model", "changes", "forced", "context"),
    [
        # 16 layers × 2 × 2 heads × 64 × 4 bytes = 16 KiB a token in float32: 8,192 tokens are 128 MiB.
        (manifest("a", 100 * MIB, context=8192), {"adapter": GPU}, "webgpu", 8192),
        # 32 heads: 256 KiB a token, of which a gibibyte holds 4,096.
        (manifest("a", 100 * MIB, context=8192, kv_heads=32), {"adapter": GPU}, "webgpu", 4096),
        # A layer's keys are a thirty-second of that: 64 MiB are 8,192 tokens, 32 MiB 4,096.
        (manifest("a", 60 * MIB, context=8192, kv_heads=32), {"adapter": GPU | {"largest": 64 * MIB}}, "webgpu", 4096),
        (manifest("a", 16 * MIB, context=8192, kv_heads=32), {"adapter": GPU | {"largest": 16 * MIB}}, "webgpu", 2048),
        # Half of 2 GiB is for us: 400 MiB of weights take 900, as files and on the device. That leaves 124 MiB, and
        # 4,096 tokens take 64.
        (manifest("a", 400 * MIB, context=8192), {"adapter": GPU, "memory": 2 * GIB}, "webgpu", 4096),
        # The processor keeps int16: 128 KiB a token with 32 heads, and an eighth more for what goes with it.
        (manifest("a", 700 * MIB, context=8192, kv_heads=32), {"memory": 2 * GIB}, "cpu", 1024),
        (manifest("a", 700 * MIB, context=8192, kv_heads=32), {"memory": 4 * GIB}, "cpu", 8192),
        # Nobody says how much memory there is: 4 GiB are assumed.
        (manifest("a", 1500 * MIB), {"memory": None}, "cpu", 2048),
        # A small context is the model's own, and is not cut further.
        (manifest("a", 16 * MIB, context=300), {}, "cpu", 300),
    ],
)
def test_the_context_that_fits(
    node: NodeModule, model: dict[str, Any], changes: dict[str, Any], forced: str, context: int
) -> None:
    got = node.ask("sessions", FACTS | changes, model, forced)
    assert [session["context"] for session in got["list"]] == [context]


@pytest.mark.parametrize(
    ("model", "changes", "forced"),
    [
        (manifest("a", 460 * MIB), {"adapter": GPU, "memory": 2 * GIB}, "webgpu"),
        (manifest("a", 900 * MIB), {"memory": 2 * GIB}, "cpu"),
        (manifest("a", 3200 * MIB), {"memory": 64 * GIB}, "cpu"),  # past what 32-bit addresses reach
        (manifest("a", 2200 * MIB), {"memory": 64 * GIB}, "wasm"),
        (manifest("a", 2000 * MIB), {"memory": None}, ""),
    ],
)
def test_a_model_that_cannot_fit_is_refused(
    node: NodeModule, model: dict[str, Any], changes: dict[str, Any], forced: str
) -> None:
    got = node.ask("sessions", FACTS | changes, model, forced)
    assert (got["list"], got["refusal"]) == ([], "memory")
    chosen = node.ask("choose", FACTS | changes, [model], {"model": "", "runtime": forced})
    assert (chosen["sessions"], chosen["refusal"], chosen["warning"]) == ([], "memory", "")
    assert chosen["offers"] == [{"slug": "a", "title": "A", "bytes": chosen["offers"][0]["bytes"], "refusal": "memory"}]


def test_a_matrix_larger_than_the_devices_buffers_is_refused(node: NodeModule) -> None:
    model = manifest("a", 100 * MIB)
    model["files"][0]["bytes"] = 300 * MIB
    assert (
        node.ask("sessions", FACTS | {"adapter": GPU | {"largest": 256 * MIB}}, model, "webgpu")["refusal"] == "memory"
    )
    assert node.ask("sessions", FACTS | {"adapter": GPU | {"largest": 300 * MIB}}, model, "webgpu")["refusal"] == ""


@pytest.mark.parametrize(
    ("name", "heads", "hidden", "largest", "chunk"),
    [
        ("webgpu", 8, 512, 2 * GIB, 256),
        ("webgpu", 16, 2048, 128 * MIB, 256),  # 16 heads × 8,192 tokens × 256 × 4 bytes are 128 MiB
        ("webgpu", 17, 2048, 128 * MIB, 128),
        ("webgpu", 1, 65536, 128 * MIB, 64),  # 8 × 65,536 × 64 × 4 bytes
        ("cpu", 64, 512, 128 * MIB, 128),
        ("wasm", 64, 512, 128 * MIB, 64),
    ],
)
def test_the_chunk_follows_the_devices_buffers(
    node: NodeModule, name: str, heads: int, hidden: int, largest: int, chunk: int
) -> None:
    model = manifest("a", 16 * MIB, architecture={"context": 8192, "heads": heads, "hidden": hidden})
    got = node.ask("sessions", FACTS | {"adapter": GPU | {"largest": largest}}, model, name)
    assert got["list"][0]["chunk"] == chunk


@pytest.mark.parametrize(
    ("changes", "models", "wish", "slug", "why", "warning"),
    [
        ({}, [SMALL], "", "small", "only", ""),
        ({}, [SMALL, LARGE, HUGE], "", "large", "best", ""),
        (JSPI, [SMALL, LARGE, HUGE], "", "large", "best", ""),
        ({}, [SMALL, manifest("first", 400 * MIB), LARGE], "", "first", "best", ""),
        ({}, [SMALL, manifest("first", 300 * MIB), LARGE], "", "large", "best", ""),
        ({"memory": GIB}, [SMALL, LARGE], "", "small", "best", ""),
        ({"frugal": True}, [LARGE, SMALL], "", "small", "smallest", ""),
        ({"room": 300 * MIB}, [SMALL, LARGE], "", "small", "best", ""),
        ({"room": 300 * MIB}, [SMALL, LARGE], "large", "large", "asked", "storage"),
        ({"room": 10 * MIB}, [SMALL, LARGE], "", "small", "smallest", "storage"),
        ({"room": None}, [SMALL, LARGE], "", "large", "best", ""),
        ({"int4": False}, [LARGE, SMALL], "", "small", "smallest", ""),  # ORT's WASM is slow with either
        (JSPI | {"memory": 16 * GIB}, [SMALL, manifest("big", 1500 * MIB)], "", "small", "best", ""),  # not unasked
        (JSPI | {"memory": 16 * GIB}, [SMALL, manifest("big", 1500 * MIB)], "big", "big", "asked", ""),
        ({}, [SMALL, LARGE], "small", "small", "asked", ""),
    ],
)
def test_the_model(
    node: NodeModule,
    changes: dict[str, Any],
    models: list[dict[str, Any]],
    wish: str,
    slug: str,
    why: str,
    warning: str,
) -> None:
    got = node.ask("choose", FACTS | changes, models, {"model": wish, "runtime": ""})
    assert (got["slug"], got["why"], got["warning"], got["refusal"]) == (slug, why, warning, "")
    assert got["sessions"]
    assert [offer["slug"] for offer in got["offers"]] == [model["slug"] for model in models]


@pytest.mark.parametrize(
    ("changes", "forced", "runtimes"),
    [
        ({}, "", ["cpu", "wasm"]),
        (JSPI, "", ["webgpu", "cpu", "wasm"]),
        (JSPI, "cpu", ["webgpu", "cpu", "wasm"]),
        (JSPI | {"adapter": GPU | {"wrong": ["sha of model-webgpu.onnx"]}}, "", ["webgpu", "cpu", "wasm"]),
        ({"adapter": GPU | {"kind": "software"}}, "", ["cpu", "wasm"]),
        ({"adapter": GPU | {"kind": "software"}}, "webgpu", ["webgpu", "cpu", "wasm"]),
        ({"int4": False}, "", ["wasm"]),
    ],
)
def test_the_runtimes_that_the_visitor_may_choose(
    node: NodeModule, changes: dict[str, Any], forced: str, runtimes: list[str]
) -> None:
    got = node.ask("choose", FACTS | changes, [SMALL], {"model": "", "runtime": forced})
    assert got["runtimes"] == runtimes


def test_a_model_that_is_not_there_is_no_choice(node: NodeModule) -> None:
    got = node.ask("choose", FACTS, [SMALL], {"model": "other", "runtime": ""})
    assert (got["slug"], got["refusal"], got["sessions"]) == ("other", "absent", [])
    assert node.ask("choose", FACTS, [], {"model": "", "runtime": ""})["refusal"] == "absent"


@pytest.mark.parametrize(
    ("device", "build"), [("cpu", ""), ("wasm", "wasm"), ("webgpu", "jspi"), ("webgpu, no JSPI", "webgpu")]
)
def test_the_files_of_a_build_are_those_that_the_budget_counts(node: NodeModule, device: str, build: str) -> None:
    counted = [name for name in RUNTIMES[device] if name.startswith("ort/")]
    assert node.ask("ortFiles", {"build": build}) == counted


@pytest.mark.parametrize(
    ("forced", "own"), [("webgpu", "model-webgpu.onnx"), ("cpu", "plan.json"), ("wasm", "model.onnx")]
)
def test_a_runtime_needs_its_own_graph_and_no_other(node: NodeModule, forced: str, own: str) -> None:
    session = node.ask("sessions", FACTS | JSPI, SMALL, forced)["list"][0]
    names = [entry["name"] for entry in node.ask("needed", SMALL, session)]
    assert sorted(names) == sorted([own, "tokenizer.json", *SMALL["weights"]])
    offered = node.ask("choose", FACTS | JSPI, [SMALL], {"model": "", "runtime": forced})["offers"][0]["bytes"]
    assert offered == sum(entry["bytes"] for entry in SMALL["files"] if entry["name"] in names)


@pytest.mark.parametrize(
    ("changes", "model", "forced", "names", "ort"),
    [
        (JSPI, SMALL, "", ["plan.json"], 3),
        (JSPI, SMALL | {"plan": ""}, "", ["model.onnx"], 6),
        (JSPI, SMALL | {"graphs": {"webgpu": "model.onnx", "wasm": "model.onnx"}, "plan": ""}, "", [], 6),
        ({}, SMALL, "", [], 0),  # A processor is not lost.
        (JSPI, SMALL, "webgpu", [], 3),  # Nothing was to take over.
    ],
)
def test_what_takes_over_from_a_graphics_chip_needs_little_more(
    node: NodeModule, changes: dict[str, Any], model: dict[str, Any], forced: str, names: list[str], ort: int
) -> None:
    """Entries of the manifest, and files of ONNX Runtime in all."""
    sessions = node.ask("sessions", FACTS | changes, model, forced)["list"]
    assert [entry["name"] for entry in node.ask("spare", model, sessions)] == names
    runtimes = [sessions[0], *node.ask("fallback", sessions)]
    assert sum(len(node.ask("ortFiles", session)) for session in runtimes) == ort
