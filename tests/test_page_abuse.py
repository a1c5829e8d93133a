"""The page under abuse: each thing tried has a clear outcome, and nothing of the visitor's is lost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from playwright.sync_api import Browser, Route

import page_models
import tabs
from bench.soak import CONVERSATION
from exporter.fetch import sha256
from handbill.manifest import NAME, File, Manifest
from tabs import Tab

pytestmark = pytest.mark.page

GREEDY = {"temperature": 0, "max_tokens": 16}
FLOOD = "a" + "\u200b" * 20 + "\u0301" * 20 + "b"
BIDI = "\u202e\u2066Hello \u202dworld\u2069\u202c"


def test_hostile_messages_have_a_clear_outcome_and_are_not_lost(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_page(), address)
        tab.open("?runtime=wasm", settings=GREEDY)
        page = tab.page
        first = tab.ask("Hello")
        # A megabyte, pasted: refused in words and given back whole.
        page.evaluate("document.getElementById('message').value = 'word '.repeat(2e5).trim() + '!'")
        page.evaluate("document.getElementById('composer').requestSubmit()")
        assert "too long" in page.inner_text("#status-text")
        assert page.evaluate("document.getElementById('message').value.length") == 1_000_000
        assert page.locator(".turn").count() == 2
        page.evaluate("document.getElementById('message').value = ''")
        page.click("#new-chat")

        for text in ("\ud800 half \udc00", FLOOD, BIDI, "{{ 7 * 7 }}{% raw %}", "<user>x<end>"):
            # As an expression: half a character does not travel from Python otherwise.
            page.evaluate(f"document.getElementById('message').value = {json.dumps(text)}")
            page.evaluate("document.getElementById('composer').requestSubmit()")
            assert tab.answer(0)["ids"]
            shown = page.locator(".question p").first
            said = shown.evaluate("(element) => element.textContent.toWellFormed()")
            assert said == text or " half " in said  # Half a character cannot be kept.
            box = shown.bounding_box()
            assert box and box["height"] < 600
            page.click("#new-chat")
        assert tab.ask("Hello")["ids"] == first["ids"]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert tab.errors == []
        assert tab.outside == []
        page.close()


def test_storage_cleared_and_the_clock_moved_while_it_runs(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_page(), address)
        tab.open("?runtime=wasm", settings=GREEDY)
        first = tab.ask("Hello")
        tab.page.evaluate(
            """async () => {
                localStorage.clear();
                sessionStorage.clear();
                const root = await navigator.storage.getDirectory();
                for await (const name of root.keys()) await root.removeEntry(name, {recursive: true}).catch(() => {});
                let now = 0;
                Date.now = () => (now = now ? 0 : 4e12);
            }"""
        )
        tab.page.click("#new-chat")
        assert tab.ask("Hello")["ids"] == first["ids"]
        tab.page.click("#open-settings")
        tab.page.fill("#max_tokens", "3")
        tab.page.keyboard.press("Escape")
        assert len(tab.ask("Again")["ids"]) == 3
        tab.page.reload()
        tab.ready()  # What was cleared is fetched again.
        assert len(tab.ask("Hello")["ids"]) == 3
        assert tab.errors == []
        tab.page.close()


def test_a_browser_that_keeps_nothing(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_page(), address)
        tab.page.add_init_script(
            "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('No.', 'SecurityError'); }})"
        )
        tab.open("?runtime=wasm")
        tab.page.click("#open-settings")
        tab.page.fill("#max_tokens", "3")
        tab.page.keyboard.press("Escape")
        assert len(tab.ask("Hello")["ids"]) == 3
        assert tab.errors == []
        tab.page.close()


def spoilt(change: Callable[[dict[str, Any]], None], site: Path) -> str:
    manifest: dict[str, Any] = json.loads((site / "models" / "tiny" / NAME).read_text(encoding="utf-8"))
    change(manifest)
    return json.dumps(manifest)


MANIFESTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "wrong hashes": lambda manifest: [entry.update(sha256="0" * 64) for entry in manifest["files"]] and None,
    "absurd sizes": lambda manifest: [entry.update(bytes=10**15) for entry in manifest["files"]] and None,
    "path tricks": lambda manifest: manifest["files"][0].update(name="../../secret.json"),
    "an unknown key": lambda manifest: manifest.update(surprise=1),
    "an address": lambda manifest: manifest["files"][0].update(name="https://outside.test/x"),
}


def test_manifests_that_cannot_be_trusted(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        for name, change in MANIFESTS.items():
            context = chromium.new_context()
            tab = Tab(context.new_page(), address)
            body = spoilt(change, tiny_site)

            def answer(route: Route, body: str = body) -> None:
                route.fulfill(body=body, content_type="application/json")

            context.route("**/models/tiny/manifest.json", answer)
            tab.open("?model=tiny&runtime=wasm", wait=False)
            tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
            assert len(tab.alarm()) > 20, name
            assert not tab.page.evaluate("document.body.dataset.ready"), name
            assert tab.outside == [], name
            context.close()


def oversized(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 40


def mistyped(model: onnx.ModelProto) -> None:
    for initializer in model.graph.initializer:
        initializer.data_type = onnx.TensorProto.STRING


@pytest.mark.parametrize("change", [oversized, mistyped])
def test_graphs_that_cannot_be_trusted(
    chromium: Browser, dist: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    site = page_models.site(dist, tmp_path / "dist", ("tiny",))
    folder = site / "models" / "tiny"
    manifest = Manifest.from_json((folder / NAME).read_text(encoding="utf-8"))
    for name in set(manifest.graphs.values()):
        model = onnx.load(folder / name, load_external_data=False)
        change(model)
        (folder / name).unlink()
        (folder / name).write_bytes(model.SerializeToString())
    files = [
        File(entry.name, (folder / entry.name).stat().st_size, sha256(folder / entry.name)) for entry in manifest.files
    ]
    (folder / NAME).unlink()
    (folder / NAME).write_text(dataclasses.replace(manifest, files=files).to_json(), encoding="utf-8")
    with tabs.serving(site) as address:
        tab = Tab(chromium.new_page(), address)
        tab.open("?runtime=wasm", wait=False)
        tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
        assert len(tab.alarm()) > 20
        assert not tab.page.evaluate("document.body.dataset.ready")
        tab.page.close()


def test_conversations_leave_no_listeners_and_no_nodes(chromium: Browser, tiny_site: Path) -> None:
    """The page holds for weeks: tests/bench/soak.py looks at the memory, this at what would make it grow."""
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_page(), address)
        tab.open("?runtime=wasm", settings=GREEDY)
        session = tab.page.context.new_cdp_session(tab.page)
        session.send("Performance.enable")
        session.send("HeapProfiler.enable")

        def counts() -> tuple[int, int]:
            session.send("HeapProfiler.collectGarbage")
            metrics = {item["name"]: item["value"] for item in session.send("Performance.getMetrics")["metrics"]}
            return int(metrics["JSEventListeners"]), int(metrics["Nodes"])

        for number in range(5):
            tab.page.evaluate(CONVERSATION, [f"a{number}"])
        before = counts()
        for number in range(15):
            tab.page.evaluate(CONVERSATION, [f"b{number}"])
        listeners, nodes = counts()
        assert listeners == before[0]
        assert nodes <= before[1] + 60  # MicroPython lets go of an element when it next collects, not at once.
        assert tab.errors == []
        tab.page.close()
