"""What the page should answer with a tiny export: the same loop over native onnxruntime, greedily."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from exporter.native import NativeSession, RustTokenizer
from handbill.chat import Prompter
from handbill.events import Done, Piece
from handbill.generate import Generator
from handbill.manifest import NAME, Manifest
from handbill.sampling import Settings

Found = TypeVar("Found")
Ask = Callable[[list[dict[str, str]]], Coroutine[None, None, tuple[str, list[int]]]]


def answers(folder: Path, asked: list[tuple[str, str]], most: int = 16) -> list[list[int]]:
    """Token ids, at most ``most``, for each of ``asked``: (adapter, the only question of a conversation)."""

    async def talk(generator: Generator, ask: Ask) -> list[list[int]]:
        found = []
        for adapter, question in asked:
            await generator.adapt(adapter)
            found.append((await ask([{"role": "user", "content": question}]))[1])
        return found

    return _run(folder, most, talk)


def conversation(folder: Path, questions: tuple[str, ...], most: int = 16) -> list[list[int]]:
    """Token ids, at most ``most``, of the answers in one conversation that asks ``questions``."""

    async def talk(_: Generator, ask: Ask) -> list[list[int]]:
        found, messages = [], []
        for question in questions:
            messages.append({"role": "user", "content": question})
            text, ids = await ask(messages)
            messages.append({"role": "assistant", "content": text})
            found.append(ids)
        return found

    return _run(folder, most, talk)


def _run(folder: Path, most: int, talk: Callable[[Generator, Ask], Coroutine[None, None, Found]]) -> Found:
    manifest = Manifest.from_json((folder / NAME).read_text("utf-8"))
    session, tokenizer = NativeSession.open(folder), RustTokenizer.open(folder)
    generator = Generator(session, tokenizer, manifest.eos_ids, time.monotonic)
    prompter = Prompter(manifest, datetime.now, tokenizer.added)

    async def ask(messages: list[dict[str, str]]) -> tuple[str, list[int]]:
        settings = Settings(temperature=0, max_tokens=most)
        events = [event async for event in generator.answer(prompter.prompt(messages), settings)]
        assert isinstance(events[-1], Done)
        return "".join(event.text for event in events if isinstance(event, Piece)), list(events[-1].ids)

    with ThreadPoolExecutor(1) as pool:  # Playwright's sync API owns the test's event loop.
        found = pool.submit(asyncio.run, talk(generator, ask)).result()
    session.close()
    return found
