"""Openings in a real OPFS: what is kept is found by its very key, and by the runtime that computed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

import tabs

pytestmark = pytest.mark.page

PLAY = """async () => {
    const { openOpenings } = await import("/openings.js");
    const { openFirst } = await import("/sessions/enduring.js");
    const { Fault } = await import("/fault.js");
    const base = new URL("/", location);
    const ids = Int32Array.of(7, 8, 9);
    const cpu = (kernels, content = 1) => ({
        kernels, context: 99, chunk: 9, length: 0,
        snapshot: () => Uint8Array.of(content, content, content),
        restore: (bytes) => bytes.length === 3 && bytes.every((byte) => byte === content),
        step: () => Promise.reject(new Fault("memory", "gone")),
        close() {},
    });
    const wasm = { context: 99, chunk: 9, length: 0, step: async () => ({}) };
    const found = async (kernels, model, content) => {
        const store = await openOpenings(cpu(kernels, content), model, base);
        return { names: [...store.names], whole: await store.restore("3-a", ids) };
    };

    const start = ({ name }) => (name === "cpu" ? cpu("one") : wasm);
    const session = await openFirst([{ name: "cpu" }, { name: "wasm" }], start, () => {});
    const store = await openOpenings(session, "model", base);
    await store.save("3-a", 3);
    const kept = await store.restore("3-a", ids);
    await session.step(Int32Array.of(1)); // From here on it is wasm, which has no snapshots.
    const foreign = await store.restore("3-a", ids);
    await store.save("4-b", 4);
    return {
        kept, foreign, names: store.names,
        same: await found("one", "model"), kernels: await found("two", "model"), model: await found("one", "other"),
        damaged: await found("one", "model", 2), gone: await found("one", "model"),
    };
}"""


@pytest.fixture
def played(chromium: Browser, dist: Path) -> dict[str, Any]:
    with tabs.serving(dist) as address:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(f"{address}/style.css")
        result: dict[str, Any] = page.evaluate(PLAY)
        context.close()
    return result


def test_an_opening_outlives_a_runtime_that_cannot_use_it_and_serves_no_other_key(played: dict[str, Any]) -> None:
    whole = {"names": ["3-a"], "whole": True}
    assert (played["kept"], played["foreign"], played["names"]) == (True, False, ["3-a"])
    assert played["same"] == whole
    nothing = {"names": [], "whole": False}
    assert played["kernels"] == played["model"] == nothing, "another key found something"
    assert played["damaged"] == {"names": ["3-a"], "whole": False}
    assert played["gone"] == nothing, "what did not fit was kept"
