"""sessions/webgpu.js on SwiftShader: a static KV cache, few bytes back, right candidates, and a device that errs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser

import gpu_page
import page_models
import tiny_checkpoint
import tiny_exports
from exporter.export import export
from exporter.native import NativeSession
from exporter.verify import device_check
from gpu_page import PROMPT, GpuPage

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def bare(gpu: Browser, dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuPage]:
    exports = {name: page_models.exported(name) for name in ("tiny", "tiny-gguf")}
    exports["huge"] = beyond_half_precision(tmp_path_factory.mktemp("huge"))
    home = gpu_page.site(tmp_path_factory.mktemp("gpu") / "site", dist, exports)
    with gpu_page.opened(gpu, home) as page:
        yield page


def beyond_half_precision(home: Path) -> Path:
    """The export of a tiny llama whose residual stream passes 65,504, the largest float16."""
    model = tiny_checkpoint.model("llama")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e6)
        hidden = model(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states
    assert all(state.abs().max() > 65_504 for state in hidden[:-1])  # The last is behind a norm.
    folder = tiny_checkpoint.save("llama", home / "huge")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder)
    export_folder = export(str(folder), home / "models", home / "cache")
    tiny_exports.compute_exactly(export_folder)
    return export_folder


def native(folder: Path, steps: list[dict[str, Any]]) -> list[np.ndarray]:
    """All logits [positions, vocabulary] of ``steps`` by native onnxruntime on the export in ``folder``."""
    session = NativeSession.open(folder, threads=1, graph="webgpu")
    rows = []
    for step in steps:
        session.rewind(step.get("rewind", session.length))
        rows.append(session.logits(step["ids"], step.get("positions", 1)))
    session.close()
    return rows


@pytest.mark.parametrize("name", ["tiny", "tiny-gguf"])
def test_candidates_are_those_of_native_onnxruntime(bare: GpuPage, name: str) -> None:
    """Prefill, a chunk on top, decode, several positions, and a rewind into the middle."""
    steps: list[dict[str, Any]] = [
        {"ids": PROMPT, "positions": 3},
        {"ids": PROMPT[:7]},
        {"ids": [5]},
        {"ids": [9, 8], "positions": 2, "rewind": 22},
        {"ids": [7]},
    ]
    got = bare.answers(name, "webgpu", steps)
    for answer, rows in zip(got, native(page_models.exported(name), steps), strict=True):
        ids = np.array(answer["ids"]).reshape(len(rows), 64)
        logits = np.array(answer["logits"]).reshape(len(rows), 64)
        assert ids[:, 0].tolist() == rows.argmax(1).tolist()
        np.testing.assert_allclose(logits, np.take_along_axis(rows, ids, 1), atol=2e-4)
        np.testing.assert_allclose(logits, -np.sort(-rows)[:, :64], atol=2e-4)


def test_a_graph_that_leaves_nodes_to_the_processor_is_noticed(bare: GpuPage) -> None:
    """What every other test here relies on. ORT's WebGPU has no float zero points, which the graph for WASM has."""
    fault = bare.js(
        """return open("/models/tiny-gguf", "webgpu", { chunk: 24, graph: "wasm" }).then(
          () => "opened",
          (error) => error.message,
        );"""
    )
    assert "CPU" in fault and "fallback" in fault


def test_a_step_creates_nothing_and_reads_back_less_than_a_kilobyte(bare: GpuPage) -> None:
    """At 30 tokens of context and at 400 a decoded token costs the same: no new buffer, no copy of the KV cache."""
    steps = [{"ids": PROMPT}, *({"greedy": 2} for _ in range(2)), *({"ids": PROMPT} for _ in range(18)), {"greedy": 2}]
    answers = bare.answers("tiny", "webgpu", steps)
    early, late = answers[2]["counts"], answers[-1]["counts"]
    assert early["buffers"] == late["buffers"] == 0
    assert early["mapped"] == late["mapped"] == early["copied"] == late["copied"] == 64 * (8 + 4)
    assert early["mappings"] == late["mappings"] == 1
    assert early["dispatches"] == late["dispatches"] > 0


def test_a_context_full_to_the_last_token_is_right_and_one_more_is_refused(bare: GpuPage) -> None:
    steps = [{"ids": (PROMPT * 2)[:24]} for _ in range(2)] + [{"ids": PROMPT[:15]}, {"ids": [5]}]
    got = bare.answers("tiny", "webgpu", steps, context=64)
    assert got[-1]["ids"][0] == int(native(page_models.exported("tiny"), steps)[-1].argmax())
    fault = bare.js(
        """const session = await open("/models/tiny", "webgpu", { context: 64, chunk: 24 });
        await run(session, steps);
        const fault = await session.step(Int32Array.of(1)).catch((error) => error.fault);
        const length = session.length;
        await session.close();
        return [fault, length];""",
        steps=steps,
    )
    assert fault == ["too_long", 64]


def test_the_cache_has_the_room_it_says_from_the_start(bare: GpuPage) -> None:
    """One buffer per layer and kind: float32 [1, kv_heads 2, context, head_dim 16] for two layers."""
    found = bare.js(
        """const session = await open("/models/tiny", "webgpu", { context: 384, chunk: 24 });
        const at = [alive(bytes)];
        await run(session, [{ ids: prompt }, { greedy: 3 }]);
        at.push(alive(bytes));
        await session.close();
        return at;""",
        bytes=4 * 2 * 384 * 16,
        prompt=PROMPT,
    )
    assert found == [2 * 2, 2 * 2]


def test_a_device_of_the_least_limits_there_are_runs_without_an_error(gpu: Browser, bare: GpuPage) -> None:
    """Those that WebGPU guarantees, instead of all that the adapter gives. An error on the device fails the step."""
    steps: list[dict[str, Any]] = [{"ids": PROMPT, "positions": 3}, {"ids": [5]}]
    with gpu_page.opened(gpu, bare.home) as page:
        page.js(
            """const request = GPUAdapter.prototype.requestDevice;
            GPUAdapter.prototype.requestDevice = function ({ requiredFeatures }) {
              return request.call(this, { requiredFeatures });
            };"""
        )
        limits = page.js(
            """const choose = await import("/sessions/choose.js");
            const { maxStorageBufferBindingSize: largest } = (await (await navigator.gpu.requestAdapter())
              .requestDevice({ requiredFeatures: [] })).limits;
            const facts = { adapter: { kind: "hardware", largest, wrong: [] }, simd: true };
            const { manifest } = await model("/models/tiny");
            const [{ chunk }] = choose.sessions(facts, manifest, "webgpu").list;
            return { largest, chunk };"""
        )
        got = page.answers("tiny", "webgpu", steps, chunk=limits["chunk"])
    assert limits["largest"] == 128 * 1024 * 1024
    for answer, rows in zip(got, native(page_models.exported("tiny"), steps), strict=True):
        assert np.array(answer["ids"]).reshape(len(rows), 64)[:, 0].tolist() == rows.argmax(1).tolist()


def test_swiftshader_is_kept_to_short_chunks(bare: GpuPage) -> None:
    """Its prefill of 32 and more tokens is wrong (ORT 1.30); were it right, the chunk would be what was chosen."""
    chunk = bare.js(
        """const session = await open("/models/tiny", "webgpu", { chunk: 64 });
        await session.close();
        return session.chunk;"""
    )
    assert chunk == 24


def test_a_chip_that_is_only_wrong_past_the_checks_length_is_kept_to_short_chunks(bare: GpuPage) -> None:
    """The manifest's check is shorter than a chunk: here 20 tokens, where SwiftShader is right, and a chunk of 64."""
    (rows,) = native(page_models.exported("tiny"), [{"ids": PROMPT}])
    chunk = bare.js(
        """const session = await open("/models/tiny", "webgpu", { chunk: 64 }, { check });
        await session.close();
        return session.chunk;""",
        check=vars(device_check(PROMPT, rows[0])),
    )
    assert chunk == 24


def test_the_facts_have_the_smaller_of_an_adapters_two_limits(bare: GpuPage) -> None:
    """Context and chunk follow it (test_choice.py): what is larger than either cannot be bound."""
    found = bare.js(
        """const { gather } = await import("/sessions/facts.js");
        const { info } = await navigator.gpu.requestAdapter();
        const request = GPU.prototype.requestAdapter;
        const seen = async (maxBufferSize, maxStorageBufferBindingSize) => {
          GPU.prototype.requestAdapter = async () => ({ info, limits: { maxBufferSize, maxStorageBufferBindingSize } });
          return (await gather({ files: {} })).adapter;
        };
        try {
          return [await seen(2 ** 28, 2 ** 27), await seen(2 ** 26, 2 ** 27)];
        } finally {
          GPU.prototype.requestAdapter = request;
        }"""
    )
    assert [adapter["largest"] for adapter in found] == [2**27, 2**26]
    assert {adapter["kind"] for adapter in found} == {"software"}


def test_activations_beyond_half_precision_stay_numbers(bare: GpuPage) -> None:
    steps: list[dict[str, Any]] = [{"ids": PROMPT}, {"ids": [5]}]
    home = bare.home / "models" / "huge"
    for answer, rows in zip(bare.answers("huge", "webgpu", steps), native(home, steps), strict=True):
        assert np.isfinite(answer["logits"]).all()
        np.testing.assert_allclose(answer["logits"], -np.sort(-rows[0])[:64], atol=1e-3)


def test_sessions_that_come_and_go_leave_nothing_behind(bare: GpuPage) -> None:
    """Ten after the second: ORT's memory is the place where a session that is not released stays, and it keeps each
    device that it was given, so all have the same one, until something goes wrong on it.
    """
    found = bare.js(
        """const cycle = async (times) => {
          for (let i = 0; i < times; i += 1) {
            const session = await open("/models/tiny", "webgpu", { context: 512, chunk: 24 });
            await session.step(Int32Array.of(5));
            await session.close();
          }
          return wasmBytes();
        };
        const before = await cycle(2);
        const { device } = globalThis;
        const after = await cycle(10);
        const buffers = alive(bytes);
        const same = globalThis.device === device;
        const session = await open("/models/tiny", "webgpu", { context: 512, chunk: 24 });
        const error = new GPUValidationError("said by the test");
        device.dispatchEvent(new GPUUncapturedErrorEvent("uncapturederror", { error }));
        const fault = await session.step(Int32Array.of(5)).catch(({ message }) => message);
        await session.close();
        return { before, after, buffers, same, fault, end: (await device.lost).reason };""",
        bytes=4 * 2 * 512 * 16,
    )
    assert 0 < found["before"] <= found["after"] <= 1.05 * found["before"]
    assert (found["buffers"], found["same"]) == (0, True)
    assert "said by the test" in found["fault"]
    assert found["end"] == "destroyed"
