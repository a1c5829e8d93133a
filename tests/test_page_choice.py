"""The page on devices of every kind: it downloads only what runs there, says what it chose and why, and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Playwright

import altered_site
import budget
import native_answers
import page_models
import tabs
from fault_server import Stall
from handbill.manifest import NAME, Manifest
from tabs import Mischief, Tab
from test_page_adapter import GREEDY

pytestmark = pytest.mark.page

SLUG = "tiny-gguf"  # Each runtime has a graph of its own there.
SPARED = {"core.css", "fresh.js", "service.js", "watchdog.js"}
"""Of what the budget counts: PyScript's looks, which this page does without, and what comes later or to a kiosk."""


@pytest.mark.parametrize("device", budget.RUNTIMES)
def test_a_visit_downloads_what_the_budget_counts_and_nothing_else(
    gpu: Browser, tiny_site: Path, tmp_path: Path, device: str
) -> None:
    """So the table that build/check.py prints is what a device of that class downloads."""
    manifest = Manifest.from_json((tiny_site / "models" / SLUG / NAME).read_text(encoding="utf-8"))
    groups = budget.groups(tiny_site)
    counted = {name for group in ("page", "Python", device) for name in groups[group]}
    counted |= {f"models/{SLUG}/{name}" for name in budget.model_files(manifest, device)}
    home = altered_site.copy(tiny_site, tmp_path / "site")
    if device.endswith("no JSPI"):
        jspi = 'typeof WebAssembly.Suspending === "function"'
        altered_site.change(home, "sessions/facts.js", lambda text: text.replace(jspi, "false"))
    mischief = Mischief()
    with tabs.serving(home, mischief) as address:
        tab = Tab(gpu.new_context(service_workers="block").new_page(), address)
        tab.open(f"?model={SLUG}&runtime={device.partition(',')[0]}")
        asked = {name.partition("?")[0] or "index.html" for name, _ in mischief.asked}
        tab.page.context.close()
    wanted = {Path(name).name for name in counted}
    assert asked - wanted == set()
    assert wanted - asked == SPARED


def test_a_model_without_a_plan_runs_on_onnx_runtime_unasked(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    home = page_models.site(dist, tmp_path / "site", ("tiny-leaky",))
    mischief = Mischief()
    with tabs.serving(home, mischief) as address:
        tab = Tab(chromium.new_context(service_workers="block").new_page(), address)
        tab.open(settings=GREEDY)
        assert "(WASM)" in tab.ready()
        answer = tab.ask("Hello")["ids"]
        asked = {name for name, _ in mischief.asked}
        tab.page.context.close()
    assert answer == native_answers.answers(home / "models" / "tiny-leaky", [("", "Hello")])[0]
    assert {"model.onnx", "ort-wasm-simd-threaded.wasm"} <= asked
    assert not asked & {"plan.json", "threads.wasm", "alone.wasm"}


def test_a_model_that_cannot_fit_is_refused_before_it_is_downloaded(
    chromium: Browser, tiny_site: Path, tmp_path: Path
) -> None:
    def grow(manifest: dict[str, Any]) -> None:
        (entry,) = (entry for entry in manifest["files"] if entry["name"] in manifest["weights"])
        entry["bytes"] = 2**30  # The most that one file may have.
        for number in range(1, 40):
            more = entry | {"name": f"weights-{number:02}.bin", "sha256": f"{number:064x}"}
            manifest["files"].append(more)
            manifest["weights"].append(more["name"])

    home = altered_site.copy(tiny_site, tmp_path / "site")
    altered_site.change_json(home, f"models/{SLUG}/{NAME}", grow)
    mischief = Mischief()
    with tabs.serving(home, mischief) as address:
        tab = Tab(chromium.new_context().new_page(), address)
        tab.open(f"?model={SLUG}", wait=False)
        tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
        assert "does not fit into this device’s memory" in tab.alarm()
        assert "weights-00.bin" not in {name for name, _ in mischief.asked}
        tab.page.goto(address)  # The page's own choice passes it over.
        assert tab.ready()
        options = tab.page.locator("#model-choice option").all_inner_texts()
        assert [("too large" in option) for option in options] == [False, False, True]
        assert "largest" in tab.page.inner_text("#fact-why")
        tab.page.context.close()


def test_the_warning_is_there_before_a_byte_of_the_weights(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    """That they will have to come at every visit."""
    home = altered_site.copy(tiny_site, tmp_path / "site")
    altered_site.change(home, "sessions/facts.js", lambda text: text.replace("room: quota ?? null", "room: 1000"))
    mischief = Mischief(faults={"weights-00.bin": [Stall(0)]})
    with tabs.serving(home, mischief) as address:
        tab = Tab(chromium.new_context().new_page(), address)
        tab.open(f"?model={SLUG}", wait=False)
        tab.page.locator("#notice").wait_for(timeout=tabs.LOADED_MS)
        assert "each visit" in tab.page.inner_text("#notice")
        assert mischief.sent["weights-00.bin"] == 0
        tab.page.context.close()


def test_another_model_is_another_page_and_leaves_nothing_of_the_one_before(chromium: Browser, tiny_site: Path) -> None:
    """Workers, and with them sessions and memory; locks on files."""
    left = """async () => (await navigator.locks.query()).held.map(({ name }) => name).sort()"""
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_context(service_workers="block").new_page(), address)
        tab.open("?model=tiny")
        before = (len(tab.page.workers), tab.page.evaluate(left))
        for slug in ("tiny-gguf", "tiny"):
            tab.page.click("#open-settings")
            with tab.page.expect_navigation():
                tab.page.select_option("#model-choice", slug)
            assert f"model={slug}" in tab.page.url
            tab.ready()
        assert (len(tab.page.workers), tab.page.evaluate(left)) == before
        tab.page.context.close()


@pytest.mark.parametrize("query", ["?model=tiny", "?model=gone"])
def test_where_a_model_cannot_be_had_the_only_other_one_can_be_chosen(
    chromium: Browser, tiny_site: Path, tmp_path: Path, query: str
) -> None:
    site = altered_site.copy(tiny_site, tmp_path / "site")
    altered_site.change_json(site, f"models/tiny/{NAME}", lambda manifest: manifest.update(files={}))
    altered_site.change_json(site, "site.json", lambda it: it.update(models=[{"slug": "tiny"}, {"slug": SLUG}]))
    with tabs.serving(site) as address:
        tab = Tab(chromium.new_context(service_workers="block").new_page(), address)
        tab.open(query, wait=False)
        tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
        tab.page.click("#open-settings")
        with tab.page.expect_navigation():
            tab.page.select_option("#model-choice", SLUG)
        tab.ready()
        tab.page.context.close()


def test_a_browser_without_simd_is_told_so_before_anything_is_downloaded(
    playwright: Playwright, tiny_site: Path
) -> None:
    mischief = Mischief()
    browser = tabs.launch(playwright, "--js-flags=--no-enable-sse4-1")  # Without it V8 refuses WebAssembly's SIMD.
    with tabs.serving(tiny_site, mischief) as address:
        tab = Tab(browser.new_page(), address)
        tab.open(f"?model={SLUG}", wait=False)
        tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
        assert "This browser cannot run a language model" in tab.alarm()
    browser.close()
    assert not any(name.startswith("weights-") for name, _ in mischief.asked)
