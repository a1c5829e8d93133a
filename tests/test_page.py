"""The page in headless Chromium, on the real model, with every request to another origin noted."""

from __future__ import annotations

import asyncio
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser

import real_model
from exporter import graph
from exporter.native import NativeSession, RustTokenizer
from handbill.chat import Prompter
from handbill.events import Done
from handbill.generate import Generator
from handbill.sampling import Settings
from links import link
from tabs import Tab

pytestmark = [pytest.mark.page, pytest.mark.model]

QUESTION = "What is the capital of France?"
PLAIN_QUESTION = "What is gravity?"
GREEDY = {"temperature": 0, "max_tokens": 16}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def native_answer(folder: Path, question: str) -> list[int]:
    """Token ids of the greedy answer by native onnxruntime, on the graph in ``folder``."""
    manifest = real_model.manifest()

    async def run() -> list[int]:
        session = NativeSession.open(folder)
        tokenizer = RustTokenizer.open(folder)
        generator = Generator(session, tokenizer, manifest.eos_ids, time.monotonic)
        prompter = Prompter(manifest, datetime.now, tokenizer.added)
        prompt = prompter.prompt([{"role": "user", "content": question}])
        events = [event async for event in generator.answer(prompt, Settings(temperature=0, max_tokens=16))]
        session.close()
        assert isinstance(events[-1], Done)
        return events[-1].ids

    with ThreadPoolExecutor(1) as pool:  # Playwright's sync API owns this thread's event loop.
        return pool.submit(asyncio.run, run()).result()


def exact(folder: Path) -> Path:
    """The real export with accuracy_level 0, in ``folder``.

    ORT Web has no int8 activations on WASM: it computes accuracy_level 4 as if it were 0, so that is what native
    onnxruntime has to be told for the same arithmetic.
    """
    for path in real_model.FOLDER.iterdir():
        link(path, folder / path.name)
    model = graph.load(real_model.FOLDER / "model.onnx")
    graph.set_accuracy_level(model, 0)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def stop_at_the_third_piece(tab: Tab) -> None:
    """From inside the page: nothing else is as quick."""
    tab.page.evaluate(
        """() => {
            const channel = new BroadcastChannel(handbill.channel);
            let pieces = 0;
            channel.onmessage = ({data}) => {
                if (JSON.parse(data).kind === "piece" && ++pieces === 3) document.getElementById("send").click();
            };
        }"""
    )


def test_ort_web_answers_as_native_onnxruntime_does(chromium: Browser, site: str, tmp_path: Path) -> None:
    wanted = native_answer(exact(tmp_path), QUESTION)
    tab = Tab(chromium.new_page(), site)
    tab.open("?model=smollm2-135m&runtime=wasm", settings=GREEDY)
    answer = tab.ask(QUESTION)
    assert answer["ids"] == wanted
    assert "Paris" in answer["text"]
    assert answer["reason"] == "eos" or len(answer["ids"]) == 16

    second = tab.ask("And of Italy?")
    # The first turn's prompt and answer are in the KV cache already; only what follows is computed.
    assert second["reused"] > len(answer["ids"])
    assert "Rome" in second["text"]
    tab.shoot("chat-wasm")

    stop_at_the_third_piece(tab)
    stopped = tab.ask("Write a long story about the sea.")
    assert stopped["reason"] == "stopped"
    assert 3 <= len(stopped["ids"]) <= 4  # Only the token under way may still come.
    assert tab.outside == []
    assert tab.errors == []
    tab.page.close()


def test_our_own_kernels_answer_as_native_onnxruntime_does(chromium: Browser, site: str, tmp_path: Path) -> None:
    """Without a graphics chip they are the choice. Their int16 activations are as good as native float32."""
    wanted = native_answer(exact(tmp_path), PLAIN_QUESTION)
    context = chromium.new_context()
    tab = Tab(context.new_page(), site)
    tab.open("?model=smollm2-135m", settings=GREEDY)
    assert tab.ready().startswith("processor, ")
    first = tab.ask(PLAIN_QUESTION)
    assert (first["ids"], first["reused"]) == (wanted, 0)

    second = tab.ask("And on the moon?")
    assert second["reused"] > len(wanted)
    assert tab.outside == []
    assert tab.errors == []
    tab.page.close()

    later = Tab(context.new_page(), site)
    later.open("?model=smollm2-135m", settings=GREEDY)
    again = later.ask(PLAIN_QUESTION)
    assert again["ids"] == wanted
    assert again["reused"] >= 20  # The template's own system prompt was kept by the first visit.
    assert later.errors == []
    context.close()


def test_a_tab_that_sleeps_in_mid_answer_goes_on(chromium: Browser, site: str) -> None:
    question, settings = "Write a long story about the sea.", {"temperature": 0, "max_tokens": 64}
    awake = Tab(chromium.new_page(), site)
    awake.open("?model=smollm2-135m&runtime=cpu", settings=settings)
    wanted = awake.ask(question)
    awake.page.close()

    tab = Tab(chromium.new_page(), site)
    tab.open("?model=smollm2-135m&runtime=cpu", settings=settings)
    tab.page.fill("#message", question)
    tab.page.press("#message", "Enter")
    tab.page.wait_for_function("() => document.querySelector('.answer .body')?.innerText.length > 10")
    browser = tab.page.context.new_cdp_session(tab.page)
    browser.send("Page.setWebLifecycleState", {"state": "frozen"})
    time.sleep(2)
    browser.send("Page.setWebLifecycleState", {"state": "active"})
    assert tab.answer(0) == wanted
    assert tab.errors == []
    tab.page.close()


def test_screenshots(chromium: Browser, site: str) -> None:
    """Nothing sticks out sideways and a finger hits every button; the pictures are for people to look at."""
    context = chromium.new_context()
    tab = Tab(context.new_page(), site)
    page = tab.page

    def shoot(name: str) -> None:
        for width, scheme in itertools.product((1280, 390), SCHEMES):
            page.set_viewport_size({"width": width, "height": 820})
            page.emulate_media(color_scheme=scheme)
            tab.shoot(f"{name}-{width}-{scheme}")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            small = page.evaluate(
                """() => [...document.querySelectorAll("button, input, select, textarea")]
                    .map((element) => [element.id || element.textContent, element.getBoundingClientRect().height])
                    .filter(([, height]) => height > 0 && height < 44)"""
            )
            assert small == []

    tab.open("?model=smollm2-135m", settings={"temperature": 0, "max_tokens": 160})
    shoot("first")
    tab.ask("List three ways to save water.")
    shoot("chat")
    page.click("#open-settings")
    shoot("settings")
    context.close()
