"""The browser behind the runtime's seams: a JS session as a Session, a JS tokenizer as a Tokenizer (Pyodide only)."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Sequence
from typing import Any

import js
from pyodide.ffi import JsException

from handbill.session import Candidates, SessionError

TURNS = 12
"""Turns of the event loop after each step; all of them together take about a millisecond."""


class BrowserTokenizer:
    """``Tokenizer`` over model.js's ``{added, encode, decode}``."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added: dict[str, bool] = dict(tokenizer.added.to_py())

    @property
    def added(self) -> dict[str, bool]:
        """The tokens recognised wherever they are spelt out, and whether each is special."""
        return self._added

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; see ``handbill.session.Tokenizer``."""
        ids: list[int] = self._tokenizer.encode(text).to_py().tolist()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; see ``handbill.session.Tokenizer``."""
        return str(self._tokenizer.decode(_int32(ids)))


class BrowserSession:
    """``Session`` over a JS session (the contract is in ARCHITECTURE.md); tensors never come to Python."""

    def __init__(self, session: Any) -> None:
        self._session = session

    @property
    def context(self) -> int:
        """The most tokens the KV cache can hold."""
        return int(self._session.context)

    @property
    def chunk(self) -> int:
        """The most tokens that one step takes."""
        return int(self._session.chunk)

    @property
    def length(self) -> int:
        """Tokens in the KV cache now."""
        return int(self._session.length)

    @property
    def drafts(self) -> int:
        """The most drafted tokens that one step may check; sessions that do not say take none."""
        return int(getattr(self._session, "drafts", 0))

    @property
    def runtime(self) -> str:
        """Where the model runs: a runtime's name and its threads, such as "cpu 2"."""
        return str(self._session.runtime)

    async def step(self, ids: Sequence[int], positions: int = 1) -> list[Candidates]:
        """Append ``ids``; the candidates of the last ``positions`` of them. Raises SessionError."""
        result = await faults(self._session.step(_int32(ids), positions))
        tokens, logits = result.ids.to_py().tolist(), result.logits.to_py().tolist()
        await _listen()
        each = len(tokens) // positions
        return [
            Candidates(tokens[first : first + each], logits[first : first + each])
            for first in range(0, len(tokens), each)
        ]

    async def adapter(self, name: str) -> None:
        """Compute with the adapter ``name``, "" for none. Raises SessionError."""
        await faults(self._session.adapter(name))

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        self._session.rewind(length)

    def close(self) -> None:
        """Give the memory back."""
        self._session.close()


class BrowserOpenings:
    """``OpeningStore`` over openings.js."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @property
    def names(self) -> list[str]:
        """Names of all that is kept."""
        return [str(name) for name in self._store.names]

    async def save(self, name: str, length: int) -> None:
        """Keep the first ``length`` tokens of the KV cache; where there is no room, the next visit reads them again."""
        try:
            await self._store.save(name, length)
        except JsException as error:
            js.console.warn(f"An opening was not kept: {error.message}")

    async def restore(self, name: str, ids: Sequence[int]) -> bool:
        """Make what ``name`` holds the KV cache; see ``handbill.openings.OpeningStore``."""
        return bool(await self._store.restore(name, _int32(ids)))


async def faults(work: Awaitable[Any]) -> Any:
    """The result of a JS promise; a JS ``Fault`` (fault.js) becomes a SessionError of the same kind."""
    try:
        return await work
    except JsException as error:
        raise SessionError(getattr(error, "fault", "internal"), str(error.message)) from error


async def _listen() -> None:
    """Let the worker receive what was said meanwhile, such as ``stop``.

    A session computes in this very thread, and the worker's event loop takes a message from another thread only after
    a few turns (six to ten in Chromium 156, measured): with one turn a token, a stop came five tokens late.
    """
    for _ in range(TURNS):
        await asyncio.sleep(0)


def _int32(ids: Sequence[int]) -> Any:
    """``ids`` as an Int32Array of JS's own memory."""
    typed = js.Int32Array.new(len(ids))
    typed.assign(array("i", ids))
    return typed
