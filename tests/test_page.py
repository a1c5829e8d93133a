"""The page in headless Chromium, on the real model, with every request to another origin noted."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from playwright.sync_api import Browser

import real_model
from tabs import Tab
from exporter.native import NativeSession, RustTokenizer
from handbill.chat import Prompter
from handbill.generate import Done, Generator
from handbill.sampling import Settings

pytestmark = [pytest.mark.page, pytest.mark.model]

QUESTION = "What is the capital of France?"
GREEDY = {"temperature": 0, "max_tokens": 16}


def native_answer(question: str) -> list[int]:
    """Token ids of the greedy answer by native onnxruntime, on the graph that the page's WASM reads."""
    manifest = real_model.manifest()

    async def run() -> list[int]:
        session = NativeSession.open(real_model.FOLDER)
        generator = Generator(session, RustTokenizer.open(real_model.FOLDER), manifest.eos_ids, time.monotonic)
        prompt = Prompter(manifest, datetime.now).prompt([{"role": "user", "content": question}])
        events = [event async for event in generator.answer(prompt, Settings(temperature=0, max_tokens=16))]
        session.close()
        assert isinstance(events[-1], Done)
        return events[-1].ids

    with ThreadPoolExecutor(1) as pool:  # Playwright's sync API owns this thread's event loop.
        return pool.submit(asyncio.run, run()).result()


@pytest.mark.parametrize("runtime", ["cpu", "wasm"])
def test_the_page_answers_as_native_onnxruntime_does(chromium: Browser, site: str, runtime: str) -> None:
    tab = Tab(chromium.new_page(), site)
    tab.open(f"?model=smollm2-135m&runtime={runtime}", settings=GREEDY)
    answer = tab.ask(QUESTION)
    assert "Paris" in answer["text"]
    assert answer["ids"] == native_answer(QUESTION)
    assert answer["reason"] == "eos" or len(answer["ids"]) == 16

    second = tab.ask("And of Italy?")
    assert second["ids"]
    # The first turn's prompt and answer are in the KV cache already; only what follows is computed.
    assert second["reused"] > len(answer["ids"])
    tab.shoot(f"chat-{runtime}")
    assert tab.outside == []
    assert tab.errors == []
    tab.page.close()
