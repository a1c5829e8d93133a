"""sessions/webgpu.js when something goes wrong: no room, garbage, a run that fails, a device that is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import gpu_page
import page_models
import tabs
from exporter.native import NativeSession
from gpu_page import PROMPT, GpuPage

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def bare(gpu: Browser, dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuPage]:
    home = gpu_page.site(tmp_path_factory.mktemp("gpu") / "site", dist, {"tiny": page_models.exported("tiny")})
    with gpu_page.opened(gpu, home) as page:
        yield page


def test_the_cache_has_half_the_room_where_the_device_refuses_once(bare: GpuPage) -> None:
    """The first scope is that of the weights, the second that of the whole KV cache, the third that of half of it."""
    found = bare.js(
        """const { pushErrorScope, popErrorScope } = GPUDevice.prototype;
        const filters = [];
        let scopes = 0;
        GPUDevice.prototype.pushErrorScope = function (filter) {
          filters.push(filter);
          pushErrorScope.call(this, filter);
        };
        GPUDevice.prototype.popErrorScope = async function () {
          const error = await popErrorScope.call(this);
          const refuse = filters.pop() === "out-of-memory" && ++scopes === 2;
          return refuse ? new GPUOutOfMemoryError("Out of memory.") : error;
        };
        try {
          const session = await open("/models/tiny", "webgpu", { context: 1040, chunk: 24 });
          const at = [session.context, alive(2 * bytes), alive(bytes)];
          const [answer] = await run(session, [{ ids: prompt }]);
          await session.close();
          return [...at, answer.ids[0]];
        } finally {
          Object.assign(GPUDevice.prototype, { pushErrorScope, popErrorScope });
        }""",
        bytes=4 * 2 * 520 * 16,
        prompt=PROMPT,
    )
    session = NativeSession.open(page_models.exported("tiny"), threads=1, graph="webgpu")
    likeliest = int(session.logits(PROMPT)[0].argmax())
    session.close()
    assert found == [520, 0, 2 * 2, likeliest]


def test_a_device_that_computes_garbage_is_refused(bare: GpuPage) -> None:
    """The exporter's figures are made wrong instead of the device, which comes to the same."""
    tried = bare.js(
        """const { manifest } = await model("/models/tiny");
        const { ids, candidates, logits } = manifest.check;
        const attempt = async (check) => {
          try {
            const session = await open("/models/tiny", "webgpu", { chunk: 24 }, { check });
            await session.close();
            return "opened";
          } catch (error) {
            return `${error.constructor.name} ${error.fault}`;
          }
        };
        return [
          await attempt(manifest.check),
          await attempt({ ids, candidates, logits: logits.map((value, i) => value + (i % 2 ? 3 : -3)) }),
          await attempt({ ids, candidates: candidates.map((id) => (id + 1) % 131), logits }),
          await attempt({ ids: [], candidates: [], logits: [] }),
        ];"""
    )
    assert tried == ["opened", "WrongOutput device", "WrongOutput device", "opened"]


def test_a_chip_is_judged_anew_with_another_onnx_runtime(bare: GpuPage) -> None:
    version = json.loads((tabs.ROOT / "web" / "package.json").read_text("utf-8"))["dependencies"]["onnxruntime-web"]
    found = bare.js(
        """const { gather, judge } = await import("/sessions/facts.js");
        const wrong = async () => (await gather({ files: {} })).adapter.wrong;
        const before = await wrong();
        await judge("of a graph", false);
        const after = await wrong();
        const file = await (await navigator.storage.getDirectory()).getFileHandle("handbill graphics.json");
        const text = await (await file.getFile()).text();
        const writer = await file.createWritable();
        await writer.write(text.replace(version, "0.1"));
        await writer.close();
        return [before, after, await wrong()];""",
        version=version,
    )
    assert found == [[], ["of a graph"], []]


def test_a_lost_device_is_a_device_fault(bare: GpuPage) -> None:
    faults = bare.js(
        """const session = await open("/models/tiny", "webgpu", { chunk: 24 });
        await session.step(Int32Array.of(5, 6));
        const stepping = session.step(Int32Array.of(7)).catch((error) => [error.fault, error.message]);
        globalThis.device.destroy();
        const during = await stepping;
        const after = await session.step(Int32Array.of(7)).catch((error) => [error.fault, error.message]);
        await session.close();
        return [during, after];"""
    )
    for fault, sentence in faults:
        assert fault == "device"
        assert "lost" in sentence


@pytest.mark.parametrize(
    ("runtime", "said"),
    [("webgpu", "WrongOutput device when it is opened"), ("wasm", "Fault manifest at a step, 0 tokens kept")],
)
def test_a_model_that_computes_no_numbers_is_a_fault(bare: GpuPage, runtime: str, said: str) -> None:
    """Of the graphics chip, which may do so with a sound model; of the model, where the processor computes it."""
    found = bare.js(
        """const { fetch } = globalThis;
        globalThis.fetch = async (address) => {
          const response = await fetch(address);
          if (!address.endsWith(".bin")) return response;
          return new Response(new Uint8Array((await response.arrayBuffer()).byteLength).fill(0xff));
        };
        const said = ({ constructor: { name }, fault }, when) => `${name} ${fault} ${when}`;
        try {
          const session = await open("/models/tiny", runtime, { chunk: 24 });
          const step = session.step(Int32Array.of(5, 6)).catch((error) => said(error, "at a step"));
          return `${await step}, ${session.length} tokens kept`;
        } catch (error) {
          return said(error, "when it is opened");
        } finally {
          globalThis.fetch = fetch;
        }""",
        runtime=runtime,
    )
    assert found == said


FAILING_RUNS = {
    "device": """const positions = new ort.Tensor("float32", Float32Array.of(0), [1]);
        return original.call(this, { ...feeds, positions }, fetches);""",
    "memory": "throw new Error('Out of memory');",
}


@pytest.mark.parametrize("kind", FAILING_RUNS)
def test_a_session_whose_run_failed_is_of_no_more_use_and_neither_is_its_device(bare: GpuPage, kind: str) -> None:
    """ORT keeps the failed run's tensors bound: the next run would compute with those."""
    found = bare.js(
        f"""const ort = await import("/ort/ort.jspi.min.mjs");
        const session = await open("/models/tiny", "webgpu", {{ chunk: 24 }});
        await session.step(Int32Array.of(5, 6));
        const original = ort.InferenceSession.prototype.run;
        ort.InferenceSession.prototype.run = async function (feeds, fetches) {{ {FAILING_RUNS[kind]} }};
        const faults = [await session.step(Int32Array.of(7, 8)).catch((error) => error.fault)];
        ort.InferenceSession.prototype.run = original;
        faults.push(await session.step(Int32Array.of(7)).catch((error) => error.fault), session.length);
        const {{ device }} = globalThis;
        await session.close();
        return [...faults, (await device.lost).reason];"""
    )
    assert found == [kind, kind, 2, "destroyed"]


FAILING_OPENS = {
    # Dawn's own way to say that this process has no room for what is to be uploaded; ORT does not pass it on.
    "no room for what is uploaded": (
        """const { createBuffer } = GPUDevice.prototype;
        GPUDevice.prototype.createBuffer = function (wanted) {
          if (wanted.mappedAtCreation) throw new RangeError("too large for the implementation");
          return createBuffer.call(this, wanted);
        };""",
        "Fault memory",
    ),
    "no room for any KV cache": (
        """const { popErrorScope } = GPUDevice.prototype;
        let scopes = 0; // The first is that of the weights.
        GPUDevice.prototype.popErrorScope = async function () {
          return (await popErrorScope.call(this)) ?? (++scopes > 1 ? new GPUOutOfMemoryError("Out of memory.") : null);
        };""",
        "Fault memory",
    ),
    "a session that cannot say goodbye": (
        """const { InferenceSession } = await import("/ort/ort.jspi.min.mjs");
        const { release } = InferenceSession.prototype;
        InferenceSession.prototype.release = async function () { await release.call(this); throw new Error("again"); };
        changes.check = { ids: [5, 6], candidates: [1, 2, 3], logits: [9, 8, 7] };""",
        "WrongOutput device",
    ),
}


@pytest.mark.parametrize("name", FAILING_OPENS)
def test_what_went_wrong_first_is_said_and_the_device_is_let_go(gpu: Browser, bare: GpuPage, name: str) -> None:
    """In a page of its own: ORT opens nothing more there afterwards."""
    code, fault = FAILING_OPENS[name]
    with gpu_page.opened(gpu, bare.home) as page:
        found = page.js(
            f"""const changes = {{}};
            {code}
            const said = await open("/models/tiny", "webgpu", {{ chunk: 24 }}, changes)
              .catch((error) => `${{error.constructor.name}} ${{error.fault}}`);
            return [said, (await globalThis.device.lost).reason];"""
        )
    assert found == [fault, "destroyed"]
