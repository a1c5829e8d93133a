"""Prompt lookup: what it drafts, when it pauses, and that answers stay the same, on a fake and the real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cpu_session
import real_model
from cpu_session import LiveSession
from exporter.native import RustTokenizer
from fake_model import EOS, FakeSession, FakeTokenizer, says
from handbill.chat import Prompter
from handbill.events import Done
from handbill.generate import Generator
from handbill.manifest import NAME
from handbill.sampling import Settings
from handbill.session import Candidates
from handbill.speculate import PromptLookup


def ready(longest: int = 4) -> PromptLookup:
    """A drafter that knows what a plain step costs: one second."""
    lookup = PromptLookup(longest)
    assert list(lookup.draft([1, 2, 3, 1, 2], 4)) == []
    lookup.learn(0, 0, 1.0)
    return lookup


@pytest.mark.parametrize(
    ("ids", "want"),
    [
        ([1, 2, 3, 4, 5, 6, 1, 2], [3, 4, 5, 6]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]),  # the latest occurrence
        ([9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], [3, 8, 1, 2]),  # three tokens before two
        ([1, 2, 3, 4], []),
        ([1, 3, 1], []),
        ([7, 7, 7, 7], [7]),
        ([], []),
    ],
)
def test_the_draft_is_what_followed_the_last_time(ids: list[int], want: list[int]) -> None:
    assert list(ready().draft(ids, 9)) == want
    assert list(ready().draft(ids, 2)) == want[:2]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_a_growing_list_drafts_as_a_fresh_one_does(first: list[int], second: list[int]) -> None:
    lookup = ready()
    for tokens in (first, second):
        ids: list[int] = []
        for token in tokens:
            ids.append(token)
            assert list(lookup.draft(ids, 4)) == list(ready().draft(list(ids), 4))


def test_drafting_pauses_when_it_does_not_pay_and_is_tried_again() -> None:
    lookup = ready()
    ids = [1, 2, 3, 1, 2]
    lookup.learn(1, 1, 1.25)  # two tokens for 1.25 s of plain steps' 2 s
    for _ in range(3):
        assert list(lookup.draft(ids, 4)) == [3, 1, 2]
        lookup.learn(1, 0, 1.25)  # one token for 1.25 s: three times pay back what was earned
    assert list(lookup.draft(ids, 4)) == [3, 1, 2]
    lookup.learn(1, 0, 1.25)
    for _ in range(13):  # 0.25 s are a fiftieth of 12.5 plain steps
        assert list(lookup.draft(ids, 4)) == []
        lookup.learn(0, 0, 1.0)
    assert list(lookup.draft(ids, 4)) == [3, 1, 2]


def test_gains_of_long_ago_are_not_risked_again() -> None:
    lookup = ready()
    for _ in range(100):
        lookup.learn(3, 3, 2.0)
    for _ in range(4):
        lookup.learn(3, 0, 2.0)
        assert lookup.draft([1, 2, 3, 1, 2], 4)
    lookup.learn(3, 0, 2.0)
    assert not lookup.draft([1, 2, 3, 1, 2], 4)


@given(st.lists(st.booleans(), min_size=50, max_size=400), st.floats(1.1, 4))
def test_guesses_that_are_always_wrong_cost_a_fiftieth(wishes: list[bool], dear: float) -> None:
    """Beside the first, which nobody could know to be wrong; ``dear`` is a wider step against a plain one."""
    lookup = ready()
    lost = time = 0.0
    for wish in wishes:
        drafted = bool(wish and lookup.draft([1, 2, 3, 1, 2], 4))
        lookup.learn(int(drafted), 0, dear if drafted else 1.0)
        lost += (dear - 1) * drafted
        time += 1
    assert lost <= dear - 1 + 0.02 * time + 1e-6


def few_words(ids: Sequence[int]) -> Candidates:
    """A model that repeats itself: only its last two tokens matter."""
    first = (ids[-1] * 3 + ids[-2] * 5) % 7 if len(ids) > 1 else 1
    return Candidates([first, *(i for i in range(64) if i != first)], [5.0, *(-0.01 * i for i in range(63))])


def answer(session: FakeSession | LiveSession, generator: Generator, prompt: str, sampling: Settings) -> Done:
    async def last() -> object:
        return [event async for event in generator.answer(prompt, sampling)][-1]

    done = asyncio.run(last())
    assert isinstance(done, Done) and session.length == len(generator.cached)
    return done


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="abc", min_size=1), st.integers(1, 60), st.sampled_from([0.0, 1.5]), st.integers(1, 6))
def test_the_answer_is_the_same_with_and_without(prompt: str, most: int, temperature: float, longest: int) -> None:
    sampling = Settings(temperature, seed=2, max_tokens=most)
    plain, drafted = FakeSession(few_words), FakeSession(few_words)
    tokenizer = FakeTokenizer()
    # A clock that stands still: a wider step costs nothing more, so every draft is tried.
    want = answer(plain, Generator(plain, tokenizer, [EOS], lambda: 0.0), prompt, sampling)
    lookup = Generator(drafted, tokenizer, [EOS], lambda: 0.0, PromptLookup(longest))
    assert answer(drafted, lookup, prompt, sampling) == want
    assert plain.ids == drafted.ids
    assert len(drafted.steps) <= len(plain.steps)


def test_a_quoting_answer_takes_fewer_steps() -> None:
    text = "The quick brown fox jumps over the lazy dog. "
    session = FakeSession(says(text * 2, text), chunk=64)
    done = answer(
        session, Generator(session, FakeTokenizer(), [EOS], lambda: 0.0, PromptLookup()), text, Settings(temperature=0)
    )
    assert done.tokens == 2 * len(text)
    assert len(session.steps) < 0.3 * done.tokens


@pytest.mark.model
def test_the_real_models_greedy_answer_is_the_same_in_fewer_steps() -> None:
    manifest = real_model.manifest()
    whole = json.loads((real_model.FOLDER / NAME).read_text("utf-8"))
    session = cpu_session.LiveSession(real_model.FOLDER, manifest.architecture.context, **whole)
    tokenizer = RustTokenizer.open(real_model.FOLDER)
    content = "Repeat this exactly: The quick brown fox jumps over the lazy dog, and the dog does not mind at all."
    prompt = Prompter(manifest, datetime.now, tokenizer.added).prompt([{"role": "user", "content": content}])
    greedy = Settings(temperature=0, max_tokens=48)
    want = answer(session, Generator(session, tokenizer, manifest.eos_ids, lambda: 0.0), prompt, greedy)
    plain_steps, session.steps = session.steps, 0
    session.rewind(0)
    lookup = Generator(session, tokenizer, manifest.eos_ids, lambda: 0.0, PromptLookup())
    assert answer(session, lookup, prompt, greedy) == want
    assert session.steps <= 0.7 * plain_steps
    session.close()
