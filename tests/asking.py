"""Questions to a Generator over the fake model, and the answers by computing everything anew."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

from fake_model import EOS, FakeSession, FakeTokenizer, babble
from handbill.events import Done, Event, Piece
from handbill.generate import Drafter, Generator
from handbill.sampling import Sampler, Settings
from handbill.session import Candidates

GREEDY = Settings(temperature=0, max_tokens=20)


def ticking() -> Callable[[], float]:
    """A clock that advances by one second at every look."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


def generator(session: FakeSession, drafter: Drafter | None = None) -> Generator:
    return Generator(session, FakeTokenizer(), [EOS], ticking(), drafter)


async def collect(generator: Generator, prompt: str, settings: Settings) -> list[Event]:
    return [event async for event in generator.answer(prompt, settings)]


def ask(generator: Generator, prompt: str, settings: Settings = GREEDY) -> tuple[str, Done]:
    """(text, Done) of an answer, with what always holds checked."""
    events = asyncio.run(collect(generator, prompt, settings))
    done = events[-1]
    assert isinstance(done, Done)
    assert not any(isinstance(event, Done) for event in events[:-1])
    assert done.tokens == len(done.ids)
    assert all(event.text for event in events if isinstance(event, Piece))
    return "".join(event.text for event in events if isinstance(event, Piece)), done


def reference(prompt: str, settings: Settings, model: Callable[[Sequence[int]], Candidates] = babble) -> list[int]:
    """The answer's tokens, by computing everything anew for each of them."""
    ids = FakeTokenizer().encode(prompt)
    sampler = Sampler(settings, ids)
    answer: list[int] = []
    while len(answer) < settings.max_tokens:
        token = sampler.choose(model([*ids, *answer]))
        if token == EOS:
            break
        answer.append(token)
    return answer
