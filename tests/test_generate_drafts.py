"""Drafted tokens: they save steps and never change an answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from asking import ask, generator, reference
from fake_model import EOS, FakeSession, FakeTokenizer, says
from handbill.sampling import Settings


class Oracle:
    """Drafts that are right as often as ``pattern`` says; its guesses come from the reference answer."""

    def __init__(self, prompt: str, answer: list[int], pattern: Iterator[bool]) -> None:
        self.answer = [*answer, EOS]
        self.prompt = len(FakeTokenizer().encode(prompt))
        self.pattern = pattern
        self.most = 0

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        assert most > 0
        self.most = max(self.most, most)
        at = len(ids) - self.prompt
        return [token if next(self.pattern) else 0 for token in self.answer[at : at + 5]]

    def learn(self, drafted: int, accepted: int, seconds: float) -> None:
        assert 0 <= accepted <= drafted
        assert seconds > 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=9), st.sampled_from([0.0, 1.0]), st.integers(1, 25), st.integers(2, 9)
)
def test_drafts_right_or_wrong_do_not_change_the_answer(
    pattern: list[bool], temperature: float, most: int, chunk: int
) -> None:
    sampling = Settings(temperature, seed=3, repetition_penalty=1.1, max_tokens=most)
    want = reference("prompt", sampling)
    session = FakeSession(chunk=chunk, context=22)
    generate = generator(session, Oracle("prompt", want, itertools.cycle(pattern)))
    _, done = ask(generate, "prompt", sampling)
    assert done.ids == want[:17]
    assert done.reason == ("length" if most <= 17 else "context")
    assert list(generate.cached) == session.ids
    assert session.ids == list(b"prompt")[:6] + want[: session.length - 6]


def test_a_right_draft_saves_steps_and_ends_at_eos() -> None:
    session = FakeSession(says("The same again.", "x"))
    drafter = Oracle("x", list(b"The same again."), itertools.repeat(True))
    text, done = ask(generator(session, drafter), "x")
    assert (text, done.reason) == ("The same again.", "eos")
    assert len(session.steps) <= 1 + 4
