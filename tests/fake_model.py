"""A Session without a model: the next token is a pure function of all tokens before, so every wrong token shows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from handbill.session import Candidates, SessionError

EOS = 256
VOCABULARY = 257
"""Every byte is a token; EOS ends an answer."""


class FakeTokenizer:
    """UTF-8 bytes as tokens; EOS is special and has no text."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != EOS).decode(errors="replace")


def babble(ids: Sequence[int]) -> Candidates:
    """64 candidates that depend on every token of ``ids``; the same on every run."""
    rng = random.Random(repr(list(ids)))
    tokens = rng.sample(range(EOS), 64)
    return Candidates(tokens, sorted((rng.gauss(0, 2) for _ in tokens), reverse=True))


def says(reply: str | bytes, prompt: str) -> Callable[[Sequence[int]], Candidates]:
    """A model that answers ``prompt`` (and whatever is as long) with ``reply`` and then ends."""
    tokens = [*(reply.encode() if isinstance(reply, str) else reply), EOS]
    start = len(prompt.encode())

    def model(ids: Sequence[int]) -> Candidates:
        at = len(ids) - start
        first = tokens[at] if 0 <= at < len(tokens) else EOS
        others = [token for token in range(64) if token != first]
        return Candidates([first, *others], [9.0, *(-0.1 * i for i in range(len(others)))])

    return model


class FakeSession:
    """``model`` gives the candidates after a list of tokens. ``steps`` notes (tokens, positions) of every step.

    ``failures`` maps a step's number to what it raises; the KV cache is then emptied, as the seam allows. Adapters
    change nothing but what is in the KV cache; there is none that is called "missing".
    """

    def __init__(
        self, model: Callable[[Sequence[int]], Candidates] = babble, *, context: int = 500, chunk: int = 16
    ) -> None:
        self.model = model
        self.context = context
        self.chunk = chunk
        self.drafts = chunk - 1
        self.ids: list[int] = []
        self.steps: list[tuple[int, int]] = []
        self.failures: dict[int, SessionError] = {}
        self.on_step: Callable[[], None] = lambda: None

    @property
    def length(self) -> int:
        return len(self.ids)

    async def step(self, ids: Sequence[int], positions: int = 1) -> list[Candidates]:
        assert 1 <= len(ids) <= self.chunk and 1 <= positions <= len(ids)
        assert self.length + len(ids) <= self.context
        self.steps.append((len(ids), positions))
        self.on_step()
        if failure := self.failures.pop(len(self.steps) - 1, None):
            self.ids.clear()
            raise failure
        self.ids += ids
        end = len(self.ids)
        return [self.model(self.ids[: end - positions + 1 + i]) for i in range(positions)]

    async def adapter(self, name: str) -> None:
        if name == "missing":
            raise SessionError("download", "missing")
        self.ids.clear()

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length
        del self.ids[length:]

    def close(self) -> None:
        raise AssertionError("the generator closes no session")
