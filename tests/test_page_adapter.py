"""Adapters switched live: the ORT sessions on a bare page, the page's selector, and a real LoRA on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

import fault_server
import gpu_page
import native_answers
import page_models
import real_adapter
import tabs
from exporter.native import NativeSession
from gpu_page import PROMPT
from handbill.manifest import NAME, Manifest
from tabs import Tab
from test_page_access import serious
from test_page_keep import allow
from test_page_offline import wait_for_releases
from test_page_store import names

pytestmark = pytest.mark.page

ADAPTERS = ("legal", "case-notes")
GREEDY = {"temperature": 0, "max_tokens": 16}


@pytest.mark.parametrize("runtime", ["wasm", "webgpu"])
def test_ort_web_switches_as_native_onnxruntime_does(gpu: Browser, dist: Path, tmp_path: Path, runtime: str) -> None:
    """Prefill, decode and a chunk for each adapter; back at the base every bit is as before."""
    folder = page_models.exported("tiny-adapted")
    order = ["", *ADAPTERS, "", "legal"]
    each: list[dict[str, Any]] = [{"ids": PROMPT, "positions": 3}, {"ids": [5]}, {"ids": PROMPT[:7]}]
    steps = [step | ({} if number else {"adapter": name}) for name in order for number, step in enumerate(each)]
    home = gpu_page.site(tmp_path / "site", dist, {"tiny-adapted": folder})
    with gpu_page.opened(gpu, home) as page:
        got = [np.array(answer["logits"]) for answer in page.answers("tiny-adapted", runtime, steps)]
    session = NativeSession.open(folder, threads=1, graph=runtime)
    rows = []
    for name in order:
        session.feed(folder / f"adapter-{name}.safetensors" if name else None)
        rows += [session.logits(step["ids"], step.get("positions", 1)) for step in each]
    for found, wanted in zip(got, rows, strict=True):
        np.testing.assert_allclose(found.reshape(len(wanted), 64), -np.sort(-wanted)[:, :64], atol=2e-4)
    for first, second, same in ((0, 9, True), (3, 12, True), (0, 3, False), (0, 6, False), (3, 6, False)):
        assert np.array_equal(got[first], got[second]) is same


def test_the_page_offers_what_the_manifest_has(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    """By keyboard, in both languages, in mid-conversation, and again at the next visit."""
    home = page_models.site(dist, tmp_path / "site", ("tiny-adapted", "tiny"))
    base, legal = native_answers.answers(page_models.exported("tiny-adapted"), [("", "Hello"), ("legal", "Hello")])
    assert base != legal
    with tabs.serving(home) as address:
        tab = Tab(chromium.new_page(), address)
        tab.open("?model=tiny-adapted&runtime=wasm", settings=GREEDY)
        assert tab.ask("Hello")["ids"] == base

        tab.page.focus("#open-settings")
        tab.page.keyboard.press("Enter")
        assert tab.page.is_visible("#adapter-field")
        options = tab.page.locator("#adapter-choice option")
        assert options.all_inner_texts() == ["None, the model by itself", "legal", "Case Notes"]
        assert serious(tab.page) == []
        while tab.page.evaluate("document.activeElement.id") != "adapter-choice":
            tab.page.keyboard.press("Tab")
        tab.page.keyboard.press("ArrowDown")
        tab.page.keyboard.press("Escape")
        tab.page.wait_for_function("() => document.body.dataset.adapter === 'legal'")
        assert tab.page.inner_text("#model-name") == "tiny-adapted + legal"

        assert tab.ask("And you?")["reused"] == 0  # The conversation is there, its KV cache is not.
        assert tab.page.locator(".answer").count() == 2
        tab.page.click("#new-chat")
        assert tab.ask("Hello")["ids"] == legal
        tab.adapt("")
        tab.page.click("#new-chat")
        assert tab.ask("Hello")["ids"] == base
        assert tab.page.inner_text("#model-name") == "tiny-adapted"

        tab.adapt("case-notes")
        tab.page.click("#open-settings")
        tab.page.select_option("#language-choice", "de")
        options.filter(has_text="Keiner, das Modell für sich").wait_for(state="attached")
        assert tab.errors == []
        tab.page.close()


def test_the_choice_is_kept_and_undone(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    """Another model's choice is no business of a model that has no adapters, nor is it forgotten there."""
    home = page_models.site(dist, tmp_path / "site", ("tiny-adapted", "tiny"))
    (legal,) = native_answers.answers(page_models.exported("tiny-adapted"), [("legal", "Hello")])
    kept = "JSON.parse(localStorage.getItem('handbill settings ' + location.pathname)).adapter"
    with tabs.serving(home) as address:
        context = chromium.new_context()
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny-adapted&runtime=wasm", settings=GREEDY)
        tab.adapt("legal")
        assert tab.page.evaluate(kept) == "legal"
        tab.page.close()

        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny&runtime=wasm")
        assert tab.page.locator("#adapter-field").is_hidden()
        assert tab.page.evaluate(kept) == "legal"
        tab.page.goto(f"{address}?model=tiny-adapted&runtime=wasm")
        tab.ready()
        assert tab.ask("Hello")["ids"] == legal

        tab.page.click("#open-settings")
        assert tab.page.input_value("#adapter-choice") == "legal"
        tab.page.click("#defaults")
        tab.page.wait_for_function("() => document.body.dataset.adapter === ''")
        assert tab.page.input_value("#adapter-choice") == ""
        assert tab.errors == []
        context.close()


def test_an_adapter_is_fetched_when_it_is_first_chosen(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    """And no other; it is verified, kept, and needs no server after that. One that cannot be had changes nothing."""
    home = page_models.site(dist, tmp_path / "site", ("tiny-adapted",))
    manifest = Manifest.from_json((home / "models" / "tiny-adapted" / NAME).read_text("utf-8"))
    files = {each.name: manifest.file(each.file) for each in manifest.adapters}
    mischief = tabs.Mischief({files["legal"].name: [fault_server.Corrupt(5)]})
    context = chromium.new_context()
    with tabs.serving(home, mischief) as address:
        tab = Tab(context.new_page(), address)
        tab.open(settings=GREEDY)
        wait_for_releases(tab, 1)
        assert not mischief.of(*(entry.name for entry in files.values()))
        tab.adapt("legal")
        assert len(mischief.of(files["legal"].name)) == 2, "the first one was corrupt"
        assert not mischief.of(files["case-notes"].name)
        assert files["legal"].sha256 in names(tab)
        assert files["case-notes"].sha256 not in names(tab)
        legal = tab.ask("Hello")["ids"]
        tab.page.close()
    tab = Tab(context.new_page(), address)
    tab.open()
    tab.page.wait_for_function("() => document.body.dataset.adapter === 'legal'")
    assert tab.ask("Hello")["ids"] == legal
    tab.page.click("#open-settings")
    tab.page.select_option("#adapter-choice", "case-notes")
    tab.page.wait_for_function("() => !document.getElementById('alert').hidden", timeout=tabs.LOADED_MS)
    assert files["case-notes"].name in tab.alarm()
    assert tab.page.input_value("#adapter-choice") == "legal"
    context.close()


def test_an_adapter_without_room_is_kept_in_memory(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    home = page_models.site(dist, tmp_path / "site", ("tiny-adapted",))
    (legal,) = native_answers.answers(page_models.exported("tiny-adapted"), [("legal", "Hello")])
    context = chromium.new_context()
    with tabs.serving(home) as address:
        blank = context.new_page()
        blank.goto(f"{address}site.json")
        allow(blank, 50_000)
        tab = Tab(context.new_page(), address)
        tab.open("?runtime=wasm", settings=GREEDY)
        tab.adapt("legal")
        assert tab.ask("Hello")["ids"] == legal
        assert tab.errors == []
    context.close()


@pytest.mark.model
def test_a_real_adapter_on_a_real_model(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    """Our kernels, a LoRA trained for SmolLM2; back at the base the answer is what it was, and what native says."""
    folder = real_adapter.exported()
    question = "What is gravity?"
    home = page_models.site(dist, tmp_path / "site", (folder,))
    with tabs.serving(home) as address:
        tab = Tab(chromium.new_page(), address)
        tab.open(settings=GREEDY)
        assert tab.ready().startswith("processor, ")
        before = tab.ask(question)
        tab.adapt("pirate")
        tab.page.click("#new-chat")
        adapted = tab.ask(question)
        assert adapted["text"].startswith("Arr, matey!")
        tab.adapt("")
        tab.page.click("#new-chat")
        assert tab.ask(question)["ids"] == before["ids"]
        assert not before["text"].startswith("Arr")
        assert tab.errors == []
        tab.page.close()
