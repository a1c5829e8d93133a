"""The loop that answers: prefill what the KV cache does not hold yet, then decode token by token.

It owns the knowledge of which tokens are in the session's KV cache, so that a later prompt is only computed from where
it first differs: a new turn costs its new tokens, an edited one goes back to the common prefix.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Protocol

from handbill.answer import Answer
from handbill.events import Event, Piece, Prefill
from handbill.openings import Openings
from handbill.plain import encode
from handbill.sampling import Sampler, Settings
from handbill.session import Candidates, Session, Tokenizer

MOST_CHARACTERS = 16
"""Characters for each token of context beyond which a prompt is not even tokenized: no writing has so many to a token,
and a megabyte without spaces keeps the browser's tokenizer busy for 40 s (measured)."""


PREPARED = 16
"""Tokens that a step of ``Generator.prepare`` reads: a visitor who comes meanwhile waits for one such step."""


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

    async def adapt(self, adapter: str) -> None:
        """Answer with the model's ``adapter`` from now on, "" for the base alone; the KV cache is emptied.

        Raises RuntimeError while an answer is being written, and SessionError if the adapter cannot be had: the one
        before then stays in use.
        """
        if self._busy:
            raise RuntimeError("An answer is still being written; stop it and wait for its end before adapting.")
        self._busy = True
        try:
            await self._session.adapter(adapter)
            if self._openings:
                self._openings.adapter = adapter
        finally:
            self._busy = False
            del self._cached[self._session.length :]

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
            answer = Answer(self._tokenizer, settings, started)
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
                    yield Prefill.after(done, prompt_tokens - reused, self._clock() - prefill_started)
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

    async def prepare(self, prompt: str) -> bool:
        """Keep the KV cache of ``prompt`` less its last token as an opening, for when it will be asked.

        What is missing is read in steps of ``PREPARED`` tokens, between which ``stop`` ends it; whether it was not.
        During an answer, without openings and for what is kept already it does nothing. Raises SessionError.
        """
        if self._busy or not self._openings:
            return False
        ids = encode(self._tokenizer, prompt)[:-1]
        if len(ids) >= self._session.context or not self._openings.lacks(ids):
            return True
        self._busy, self._stop = True, False
        try:
            await self._recall(ids, self._reuse(ids))
            while len(self._cached) < len(ids):
                if await self._is_stopped():
                    return False
                first = len(self._cached)
                await self._step(ids[first : first + min(PREPARED, self._session.chunk)], 1)
            await self._openings.keep(ids)
            return not self._stop
        finally:
            self._busy = False

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
