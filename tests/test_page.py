"""The page in headless Chromium, on the real model, with every request to another origin noted."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import real_model
from exporter import graph
from exporter.native import NativeSession, RustTokenizer
from handbill.chat import Prompter
from handbill.generate import Done, Generator
from handbill.sampling import Settings
from tabs import Tab

pytestmark = [pytest.mark.page, pytest.mark.model]

QUESTION = "What is the capital of France?"
GREEDY = {"temperature": 0, "max_tokens": 16}


def native_answer(folder: Path, question: str) -> list[int]:
    """Token ids of the greedy answer by native onnxruntime, on the graph in ``folder``."""
    manifest = real_model.manifest()

    async def run() -> list[int]:
        session = NativeSession.open(folder)
        generator = Generator(session, RustTokenizer.open(folder), manifest.eos_ids, time.monotonic)
        prompt = Prompter(manifest, datetime.now).prompt([{"role": "user", "content": question}])
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
        os.link(path, folder / path.name)
    model = graph.load(real_model.FOLDER / "model.onnx")
    graph.set_accuracy_level(model, 0)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


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

    # Stop from inside the page at the third piece: at two tokens a second nothing but the token under way may follow.
    tab.page.evaluate(
        """() => {
            const channel = new BroadcastChannel(handbill.channel);
            let pieces = 0;
            channel.onmessage = ({data}) => {
                if (JSON.parse(data).kind === "piece" && ++pieces === 3) document.getElementById("send").click();
            };
        }"""
    )
    stopped = tab.ask("Count from one to twenty in words.")
    assert stopped["reason"] == "stopped", stopped
    assert 3 <= len(stopped["ids"]) <= 4
    assert tab.outside == []
    assert tab.errors == []
    tab.page.close()
