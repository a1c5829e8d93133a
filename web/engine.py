"""The engine: Pyodide in a worker, which wires the runtime package to the browser. No logic lives here.

All that it imports is in the snapshot (build/snapshot.py) that python.mjs restores, but for PyScript's own package.

``start(channel)`` is called once by the page; then everything goes over the BroadcastChannel of that name, as messages
of ARCHITECTURE.md's table in JSON.
"""

import asyncio
import hashlib
import json
import platform
import time
import traceback
from collections.abc import Coroutine
from dataclasses import asdict
from datetime import datetime
from typing import Any

import js
from pyodide.ffi import create_proxy
from pyscript.js_modules import model as host

from browser import BrowserOpenings, BrowserSession, BrowserTokenizer, faults
from handbill.chat import Prompter
from handbill.events import Done
from handbill.generate import MOST_CHARACTERS, Generator
from handbill.manifest import Manifest
from handbill.openings import Openings
from handbill.sampling import Settings, refused
from handbill.session import SessionError
from handbill.speculate import PromptLookup

__export__ = ["start"]


class Engine:
    """One tab's engine: at most one model, and at most one answer at a time."""

    def __init__(self, channel: str) -> None:
        self._name = channel
        self._channel = js.BroadcastChannel.new(channel)
        self._channel.onmessage = create_proxy(self._on_message)
        self._tasks: set[asyncio.Task[None]] = set()
        self._generator: Generator | None = None
        self._manifest: Manifest | None = None
        self._answering = asyncio.Lock()
        self._adapter = ""  # Which one of the model's is in use.
        self._preparing = False  # Questions are being read that nobody has asked yet.
        self._asked = 0  # The latest turn that the visitor asked for.
        self._stopped = 0  # The latest turn that the visitor stopped; it may still wait for the one before it.

    def post(self, kind: str, **fields: object) -> None:
        """Say ``kind`` to the page."""
        self._channel.postMessage(json.dumps({"kind": kind, **fields}))

    def _on_message(self, event: Any) -> None:
        message = json.loads(event.data)
        kind = message["kind"]
        if kind == "load":
            self._spawn(self._load(message["slug"], message.get("runtime", ""), message.get("settings", {})))
        elif kind == "ask":
            turn = self._asked = message["turn"]
            if self._preparing and self._generator:
                self._generator.stop()  # Whoever asks comes first.
            self._spawn(self._ask(turn, message["messages"], message.get("settings", {})), turn)
        elif kind == "stop":
            self._stop(message["turn"])
        elif kind == "forget":
            self._stop(message["turn"])
            self._spawn(self._forget())
        elif kind == "prepare":
            self._spawn(self._prepare(message["conversations"], self._asked))
        elif kind == "adapt":
            self._spawn(self._adapt(message["adapter"]))
        elif kind == "ping":
            self.post("pong")

    def _spawn(self, work: Coroutine[Any, Any, None], turn: int = 0) -> None:
        task = asyncio.ensure_future(self._guard(work, turn))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None], turn: int) -> None:
        """The one place where an error becomes a message: the kind it carries, or ``internal``."""
        try:
            await work
        except Exception as error:
            traceback.print_exc()
            kind = getattr(error, "kind", "internal")
            self.post("fault", turn=turn, fault=kind, detail=str(error) or type(error).__name__)

    async def _load(self, slug: str, runtime: str, settings: dict[str, Any]) -> None:
        opening = host.model(self._name, slug, runtime)
        text = await faults(opening.manifest)
        manifest = Manifest.from_json(text)
        tokenizer = BrowserTokenizer(await faults(opening.tokenizer))
        prompter = Prompter(manifest, datetime.now, tokenizer.added)
        opened = await faults(opening.session)
        session = BrowserSession(opened)
        store = await host.openOpenings(opened, hashlib.sha256(text.encode()).hexdigest()[:32])
        openings = Openings(BrowserOpenings(store)) if store else None
        self._manifest = manifest
        self._prompter = prompter
        self._generator = Generator(session, tokenizer, manifest.eos_ids, time.perf_counter, PromptLookup(), openings)
        self.post(
            "ready",
            slug=manifest.slug,
            title=manifest.title,
            runtime=session.runtime,
            moved=str(opening.moved),
            context=session.context,
            characters=MOST_CHARACTERS * session.context,
            generation=asdict(manifest.generation),
            refused=refused(settings, manifest.generation),
            is_base=prompter.is_base,
            takes_system=prompter.takes_system,
            adapters=[{"name": each.name, "title": each.title} for each in manifest.adapters],
        )

    async def _ask(self, turn: int, messages: list[dict[str, str]], settings: dict[str, Any]) -> None:
        assert self._generator and self._manifest
        async with self._answering:  # A stopped answer ends first.
            if turn <= self._stopped:
                self.post("done", turn=turn, **asdict(Done("stopped", 0, 0, 0, 0.0, 0.0, [])))
                return
            prompt = self._prompter.prompt(messages)
            chosen = Settings.from_message(settings, self._manifest.generation)
            async for event in self._generator.answer(prompt, chosen):
                self.post(event.kind, turn=turn, **asdict(event))
            # What every conversation under this system prompt begins with: all that does not depend on the question.
            system = [message for message in messages[:1] if message["role"] == "system"]
            questions = ({"role": "user", "content": word} for word in ("Who", "yes"))
            await self._generator.keep_opening(*(self._prompter.prompt([*system, question]) for question in questions))

    async def _prepare(self, conversations: list[list[dict[str, str]]], asked: int) -> None:
        """Read what visitors are offered to ask, until one asks after turn ``asked``, and keep what comes of it."""
        assert self._generator
        async with self._answering:
            self._preparing = True
            try:
                for messages in conversations:
                    if self._asked != asked:  # Before this task came to run.
                        break
                    if not await self._generator.prepare(self._prompter.prompt(messages)):
                        break
            except SessionError as error:
                js.console.warn(f"The questions on offer are read when they are asked: {error}")
            finally:
                self._preparing = False

    def _stop(self, turn: int) -> None:
        """Stop the answer to ``turn`` and to every turn before it."""
        self._stopped = turn
        if self._generator:
            self._generator.stop()

    async def _adapt(self, adapter: str) -> None:
        """Answer with ``adapter`` from the next question on; one that cannot be had leaves the one before in use."""
        assert self._generator
        async with self._answering:
            try:
                await self._generator.adapt(adapter)
                self._adapter = adapter
            finally:
                self.post("adapted", adapter=self._adapter)

    async def _forget(self) -> None:
        """Drop all that was read and written, for the next visitor of a shared device."""
        async with self._answering:
            if self._generator:
                self._generator.forget()
        self.post("forgotten")


async def start(channel: str) -> None:
    """Begin to listen and to answer on ``channel``."""
    engine = globals()["engine"] = Engine(channel)
    engine.post("booted", python=platform.python_version())
