"""Sampling against transformers' logits processors, its statistics, its seed, and the limits of its settings."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from handbill.manifest import Generation
from handbill.sampling import Sampler, Settings, SettingsError, refused
from handbill.session import Candidates

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def ranked(logits: Sequence[float]) -> Candidates:
    """Candidates of a vocabulary with these logits."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    return Candidates(order, [logits[i] for i in order])


def support(settings: Settings, candidates: Candidates, context: Sequence[int] = ()) -> dict[int, float]:
    """Share of each token in the draws, measured by walking through the random numbers in even steps."""

    class Steps(random.Random):
        value = 0.0

        def random(self) -> float:
            return self.value

    steps = 4000
    counts: Counter[int] = Counter()
    for step in range(steps):
        sampler = Sampler(settings, context)
        sampler._random = Steps()
        sampler._random.value = (step + 0.5) / steps
        counts[sampler.choose(candidates)] += 1
    return {token: count / steps for token, count in counts.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 500},
        *({"top_p": tenths / 10} for tenths in range(1, 10)),
        {"top_p": 0.999},
        {"top_p": 1e-9},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.5},
        {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_shares_are_those_of_transformers(changes: dict[str, Any]) -> None:
    settings = Settings(**{"temperature": 1.0, **OFF, **changes})
    rng = random.Random(5)
    logits = [rng.gauss(0, 2) for _ in range(40)]
    context = [0, 3, 3, 7, 11]
    filters = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)])
    filters.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        filters.append(TopKLogitsWarper(settings.top_k))
    filters.append(TopPLogitsWarper(settings.top_p))
    filters.append(MinPLogitsWarper(settings.min_p))
    scores = filters(torch.tensor([context]), torch.tensor([logits], dtype=torch.float64))
    want = {i: share for i, share in enumerate(scores.softmax(-1)[0].tolist()) if share > 1 / 4000}
    got = support(settings, ranked(logits), context)
    for token in want.keys() | got.keys():
        assert got.get(token, 0) == pytest.approx(want.get(token, 0), abs=2 / 4000)


def test_greedy_takes_the_first_and_draws_no_random_number() -> None:
    sampler = Sampler(Settings(temperature=0, seed=1))
    state = sampler._random.getstate()
    assert sampler.choose(Candidates([7, 3], [2.0, 2.0])) == 7
    assert sampler._random.getstate() == state


def test_a_penalty_moves_greedy_on_and_counts_what_was_chosen() -> None:
    sampler = Sampler(Settings(temperature=0, repetition_penalty=2.0), context=[5])
    candidates = Candidates([5, 6, 7], [4.0, 3.0, 1.9])
    assert [sampler.choose(candidates) for _ in range(3)] == [6, 5, 5]
    assert Sampler(Settings(temperature=0, repetition_penalty=2.0), [5]).choose(Candidates([5, 6], [-1.0, -1.5])) == 6


def test_the_same_seed_gives_the_same_tokens_and_another_does_not() -> None:
    rng = random.Random(2)
    steps = [ranked([rng.gauss(0, 1) for _ in range(64)]) for _ in range(50)]

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Settings(temperature=1.0, seed=seed))
        return [sampler.choose(step) for step in steps]

    assert draw(3) == draw(3) != draw(4)
    assert draw(None) != draw(None)


def test_one_random_number_is_drawn_per_token() -> None:
    sampler = Sampler(Settings(temperature=1.0, seed=9))
    twin = random.Random(9)
    for _ in range(5):
        sampler.choose(ranked([0.0, 1.0, 2.0]))
        twin.random()
    assert sampler._random.getstate() == twin.getstate()


LOGITS = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=64)


@given(
    LOGITS,
    st.floats(0, 5),
    st.integers(0, 80),
    st.floats(0, 1, exclude_min=True),
    st.floats(0, 1),
    st.floats(0, 10, exclude_min=True),
    st.integers(0),
)
def test_any_settings_choose_a_candidate(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, seed: int
) -> None:
    settings = Settings(temperature, top_p, top_k, min_p, penalty, seed=seed)
    candidates = ranked(logits)
    sampler = Sampler(settings, [0])
    for _ in range(3):
        assert sampler.choose(candidates) in candidates.ids


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": -0.1}, "temperature should be between 0 and 5, not -0.1."),
        ({"temperature": 5.1}, "temperature should be between 0 and 5, not 5.1."),
        ({"temperature": math.nan}, "temperature should be between 0 and 5, not nan."),
        ({"temperature": "warm"}, "temperature should be a number, not 'warm'."),
        ({"temperature": True}, "temperature should be a number, not True."),
        ({"top_p": 0}, "top_p should be above 0 and at most 1, not 0."),
        ({"top_p": 1.01}, "top_p should be above 0 and at most 1, not 1.01."),
        ({"min_p": 2}, "min_p should be between 0 and 1, not 2."),
        ({"repetition_penalty": 0}, "repetition_penalty should be above 0 and at most 10, not 0."),
        ({"repetition_penalty": math.inf}, "repetition_penalty should be above 0 and at most 10, not inf."),
        ({"top_k": -1}, "top_k should be at least 0, not -1."),
        ({"top_k": 2.5}, "top_k should be a whole number, not 2.5."),
        ({"max_tokens": 0}, "max_tokens should be at least 1, not 0."),
        ({"seed": -1}, "seed should be at least 0, not -1."),
        ({"seed": "x"}, "seed should be a whole number, not 'x'."),
        ({"stop": "END"}, "stop should be a list of texts, none of them empty."),
        ({"stop": ("",)}, "stop should be a list of texts, none of them empty."),
        ({"stop": (3,)}, "stop should be a list of texts, none of them empty."),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_in_words(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as failure:
        Settings(**changes)
    assert str(failure.value) == words


def test_a_message_overrides_the_models_defaults() -> None:
    defaults = Generation(temperature=0.2, top_p=0.8, top_k=10, repetition_penalty=1.1, max_tokens=99)
    settings = Settings.from_message({"temperature": 0, "seed": 4, "top_p": None, "stop": ["END"]}, defaults)
    assert settings == Settings(0, 0.8, 10, 0.0, 1.1, 99, 4, ("END",))
    assert Settings.from_message({}, Generation()) == Settings()
    with pytest.raises(SettingsError, match="no setting 'temprature'; the settings are max_tokens, min_p"):
        Settings.from_message({"temprature": 1}, defaults)
    with pytest.raises(SettingsError, match="max_tokens should be at least 1"):
        Settings.from_message({"max_tokens": 0}, defaults)


def test_settings_out_of_range_are_named_one_by_one() -> None:
    good = {"temperature": 0, "top_p": 1, "max_tokens": 1}
    assert refused(good, Generation()) == []
    bad = {"temperature": 99, "top_p": 0, "max_tokens": 0}
    for name, value in bad.items():
        assert refused({**good, name: value}, Generation()) == [name]
    assert refused(bad | {"seed": -1, "warmth": 3}, Generation()) == [*bad, "seed", "warmth"]
    assert refused({"temperature": True, "max_tokens": 2.5, "top_p": None}, Generation()) == [
        "temperature",
        "max_tokens",
    ]
