"""The seam behind which a runtime hides: ORT Web, our CPU int4 session, native onnxruntime in CPython."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Candidates:
    """The likeliest next tokens of one position: ids and their float32 logits, finite, largest first (64, or fewer)."""

    ids: Sequence[int]
    logits: Sequence[float]


class Session(Protocol):
    """A loaded model with one KV cache. Tensors stay on its side; Python passes token ids and gets candidates."""

    @property
    def context(self) -> int:
        """The most tokens the KV cache can hold."""

    @property
    def chunk(self) -> int:
        """The most tokens that one ``step`` takes; longer prompts are prefilled in chunks of this size."""

    @property
    def length(self) -> int:
        """Tokens in the KV cache now."""

    @property
    def drafts(self) -> int:
        """The most drafted tokens that one step may check.

        0 where a step of several tokens rounds otherwise than single ones do: drafts could then change an answer.
        """

    async def step(self, ids: Sequence[int], positions: int = 1) -> list[Candidates]:
        """Append ``ids`` (1 to ``chunk`` of them) to the KV cache; the candidates of the last ``positions`` of them.

        Raises SessionError if the runtime fails or computes no finite numbers; the KV cache is then as before or empty
        (``length`` tells).
        """

    async def adapter(self, name: str) -> None:
        """Compute with the manifest's adapter ``name`` from now on, "" for the base alone; the KV cache is empty then.

        Raises SessionError if it cannot be had; the one before then stays in use.
        """

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the KV cache (0 ≤ length ≤ ``self.length``)."""

    def close(self) -> None:
        """Give the memory back. The session is of no use afterwards."""


class SessionError(RuntimeError):
    """The runtime failed: device lost, out of memory, a trap. ``kind`` is one of the fault kinds of the protocol."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Tokenizer(Protocol):
    """Text to token ids and back; special tokens written out in ``text`` are recognised."""

    @property
    def added(self) -> Mapping[str, bool]:
        """The tokens recognised wherever they are spelt out, and whether each is special."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; no BOS is added (the chat template writes it where the model wants one)."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens; bytes that do not yet make a character become U+FFFD."""
