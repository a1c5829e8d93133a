"""The loop that answers: prefill what the KV cache does not hold yet, then decode token by token.

It owns the knowledge of which tokens are in the session's KV cache, so that a later prompt is only computed from where
it first differs: a new turn costs its new tokens, an edited one goes back to the common prefix.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from handbill.openings import Openings
from handbill.plain import encode
from handbill.sampling import Sampler, Settings
from handbill.session import Candidates, Session, SessionError, Tokenizer
from handbill.stream import Detokenizer, StopStrings


@dataclass(frozen=True)
class Prefill:
    """Progress of reading the prompt: ``done`` of the ``total`` tokens that the KV cache did not hold.

    ``rate`` is in tokens per second, ``seconds_left`` an estimate; both are None until the first chunk is through.
    """

    kind: ClassVar[str] = "progress"
    done: int
    total: int
    rate: float | None = None
    seconds_left: float | None = None
    stage: str = "prefill"
    unit: str = "tokens"


@dataclass(frozen=True)
class Piece:
    """The next piece of the answer: whole characters, to be appended."""

    kind: ClassVar[str] = "piece"
    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer, always the last event.

    ``reason``: eos (the model ended it), stop (a stop string), length (``max_tokens``), context (the KV cache is full)
    or stopped (the visitor). ``prompt_tokens`` is the prompt's length, ``reused_tokens`` how many of them the KV cache
    already held. ``ids`` are the answer's tokens without the one that ended it, ``tokens`` their number.
    ``first_token_seconds`` runs from the call to the first token, ``tokens_per_second`` is the speed after it; each is
    0 where there was no such token.
    """

    kind: ClassVar[str] = "done"
    reason: str
    prompt_tokens: int
    reused_tokens: int
    tokens: int
    first_token_seconds: float
    tokens_per_second: float
    ids: list[int]


Event = Prefill | Piece | Done

MOST_CHARACTERS = 16
"""Characters for each token of context beyond which a prompt is not even tokenized: no writing has so many to a token,
and a megabyte without spaces keeps the browser's tokenizer busy for 40 s (measured)."""


class TooLongError(ValueError):
    """A prompt of ``length`` (in words, such as "9,000 tokens") that the model's ``context`` cannot hold.

    Nothing was computed.
    """

    kind = "too_long"

    def __init__(self, length: str, context: int) -> None:
        super().__init__(
            f"The conversation is {length} long and this model holds {context:,} tokens at most: "
            "shorten the message or start a new chat."
        )


class Drafter(Protocol):
    """Guesses the next tokens, so that one step of the session can check several at once (speculative decoding)."""

    def draft(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """Up to ``most`` guesses of what follows ``ids`` (the prompt and the answer so far); often none."""

    def learn(self, drafted: int, accepted: int, seconds: float) -> None:
        """Told after every decoding step: how many guesses it checked, how many were right and how long it took."""


class Generator:
    """Answers prompts over one session, one at a time.

    ``eos_ids`` end an answer. ``clock`` gives seconds from any origin and must not run backwards.
    ``drafter`` None decodes one token per step. ``openings`` None computes every prompt's beginning anew.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        eos_ids: Collection[int],
        clock: Callable[[], float],
        drafter: Drafter | None = None,
        openings: Openings | None = None,
    ) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._clock = clock
        self._drafter = drafter
        self._openings = openings
        self._cached: list[int] = []
        self._stop = False
        self._busy = False

    @property
    def cached(self) -> tuple[int, ...]:
        """Token ids in the session's KV cache, as far as this generator put them there."""
        return tuple(self._cached[: self._session.length])

    def stop(self) -> None:
        """End the answer now being written: after the prefill chunk or the token that is being computed."""
        self._stop = True

    def forget(self) -> None:
        """Empty the KV cache: nothing of an earlier conversation is left to continue from.

        Raises RuntimeError while an answer is being written.
        """
        if self._busy:
            raise RuntimeError("An answer is still being written; stop it and wait for its end before forgetting it.")
        self._rewind(0)

    async def answer(self, prompt: str, settings: Settings) -> AsyncIterator[Event]:
        """Answer ``prompt`` (text as the chat template wrote it), as events that end with one Done.

        Raises TooLongError before anything is computed, ValueError for a prompt without tokens, RuntimeError if another
        answer is being written, and lets the session's SessionError through; after any of them the KV cache is still
        known and the next answer works.
        """
        if self._busy:
            raise RuntimeError("An answer is still being written; stop it and wait for its end before asking again.")
        self._busy, self._stop = True, False
        try:
            started = self._clock()
            if len(prompt) > MOST_CHARACTERS * self._session.context:
                raise TooLongError(f"{len(prompt):,} characters", self._session.context)
            ids = encode(self._tokenizer, prompt)
            if not ids:
                raise ValueError("The prompt is empty; write a message first.")
            if len(ids) > self._session.context:
                raise TooLongError(f"{len(ids):,} tokens", self._session.context)
            prompt_tokens = len(ids)
            reused = await self._recall(ids, self._reuse(ids))
            answer = _Answer(self._tokenizer, settings, started)
            sampler = Sampler(settings, ids)
            reason = ""
            chosen: list[int] = []

            prefill_started = self._clock()
            yield Prefill(0, prompt_tokens - reused)
            while not chosen and not reason:
                if await self._is_stopped():
                    reason = "stopped"
                else:
                    first = len(self._cached)
                    candidates = await self._step(ids[first : first + self._session.chunk], 1)
                    done = len(self._cached) - reused
                    yield _progress(done, prompt_tokens - reused, self._clock() - prefill_started)
                    if len(self._cached) == prompt_tokens:
                        chosen = [sampler.choose(candidates[0])]

            while not reason:
                for token in chosen:
                    reason = answer.end(self._clock()) if token in self._eos_ids else answer.add(token, self._clock())
                    if text := answer.take():
                        yield Piece(text)
                    if reason:
                        break
                    ids.append(token)
                else:
                    if len(self._cached) == self._session.context:
                        reason = "context"
                    elif await self._is_stopped():
                        reason = "stopped"
                    else:
                        chosen = await self._decode(ids, sampler, settings.max_tokens - len(answer.ids))

            if text := answer.finish():
                yield Piece(text)
            yield answer.done(reason, prompt_tokens, reused)
        finally:
            self._busy = False

    def _reuse(self, ids: Sequence[int]) -> int:
        """Rewind the KV cache to its common prefix with ``ids`` and give its length.

        The last token of ``ids`` is always left to compute: its candidates are wanted, and a KV cache has none.
        """
        # A step that failed or was cancelled may have left the session shorter (or longer) than was noted here.
        del self._cached[self._session.length :]
        reused = _alike(self._cached, ids[:-1])
        self._rewind(reused)
        return reused

    async def _recall(self, ids: Sequence[int], reused: int) -> int:
        """Restore a kept opening of ``ids`` if it is longer than the ``reused`` tokens; the tokens now in the cache."""
        if not self._openings or not (length := await self._openings.recall(ids[:-1], reused)):
            return reused
        self._cached = list(ids[:length])
        return length

    async def keep_opening(self, prompt: str, other: str) -> None:
        """Keep the KV cache of what ``prompt`` and ``other`` begin with alike, if the session's KV cache begins so too.

        Between answers only; during one it does nothing.
        """
        if not self._openings or self._busy:
            return
        ids = encode(self._tokenizer, prompt)
        opening = ids[: _alike(ids, encode(self._tokenizer, other))]
        if _alike(self.cached, opening) == len(opening):
            await self._openings.keep(opening)

    def _rewind(self, length: int) -> None:
        if self._session.length != length:
            self._session.rewind(length)
        del self._cached[length:]

    async def _decode(self, ids: list[int], sampler: Sampler, most: int) -> list[int]:
        """Put the last of ``ids`` into the KV cache and choose what follows: one token, or more if a draft was right.

        ``most`` tokens are still wanted. Every token is chosen by ``sampler`` from the model's own candidates, and a
        draft only decides how many positions one step computes, so drafts do not change the answer.
        """
        spare = min(self._session.context - len(self._cached), self._session.chunk, most) - 1
        room = min(spare, self._session.drafts)
        draft = list(self._drafter.draft(ids, room))[:room] if self._drafter and room > 0 else []
        known = len(self._cached) + 1
        started = self._clock() if self._drafter else 0.0
        candidates = await self._step([ids[-1], *draft], 1 + len(draft))
        chosen: list[int] = []
        for guess, position in zip([*draft, None], candidates, strict=True):
            chosen.append(sampler.choose(position))
            if chosen[-1] != guess:
                break
        if self._drafter:
            self._drafter.learn(len(draft), len(chosen) - 1, self._clock() - started)
        self._rewind(known + len(chosen) - 1)
        return chosen

    async def _step(self, ids: Sequence[int], positions: int) -> list[Candidates]:
        candidates = await self._session.step(ids, positions)
        if not all(math.isfinite(sum(position.logits)) for position in candidates):
            # What a device that overflows in half precision hands back. Its KV cache is no better: forget all of it.
            self._rewind(0)
            raise SessionError("device", "The model's output is not a number: this device cannot run the model.")
        self._cached.extend(ids)
        return candidates

    async def _is_stopped(self) -> bool:
        """Whether to stop. The event loop gets a turn first, or a step that computes in this thread would starve it."""
        await asyncio.sleep(0)
        return self._stop


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens the two have in common from the start."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _progress(done: int, total: int, seconds: float) -> Prefill:
    """Progress after ``seconds`` of prefill."""
    rate = done / seconds if seconds > 0 else None
    return Prefill(done, total, rate, (total - done) / rate if rate else None)


class _Answer:
    """The answer so far: its tokens, the text that may be shown, and when its first and last token came."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings, started: float) -> None:
        self.ids: list[int] = []
        self._most = settings.max_tokens
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = StopStrings(settings.stop)
        self._text = ""
        self._started = started
        self._first: float | None = None
        self._last = started

    def end(self, now: float) -> str:
        """Note that an eos token came at ``now``; the reason for the end."""
        self._mark(now)
        return "eos"

    def add(self, token: int, now: float) -> str:
        """Append ``token``, which came at ``now``; the reason why the answer ends with it, or ""."""
        self._mark(now)
        self.ids.append(token)
        self._text = self._stop_strings.push(self._detokenizer.push(token))
        if self._stop_strings.found is not None:
            return "stop"
        return "length" if len(self.ids) == self._most else ""

    def take(self) -> str:
        """The text that came with the latest token and may be shown."""
        text, self._text = self._text, ""
        return text

    def finish(self) -> str:
        """The text held back so far; nothing after a stop string."""
        return self._stop_strings.push(self._detokenizer.finish()) + self._stop_strings.finish()

    def done(self, reason: str, prompt_tokens: int, reused_tokens: int) -> Done:
        """The closing event."""
        first = self._started if self._first is None else self._first
        seconds = self._last - first
        steps = len(self.ids) - (0 if reason == "eos" else 1)
        return Done(
            reason=reason,
            prompt_tokens=prompt_tokens,
            reused_tokens=reused_tokens,
            tokens=len(self.ids),
            first_token_seconds=first - self._started,
            tokens_per_second=steps / seconds if seconds > 0 and steps > 0 else 0.0,
            ids=self.ids,
        )

    def _mark(self, now: float) -> None:
        if self._first is None:
            self._first = now
        self._last = now
