"""Tally: perplexity, divergence and agreement, against numbers that can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from exporter.agreement import Predictions, Tally

VOCABULARY = 32
IDS = [1, 2, 3, 4, 5]


def logits(*probabilities: list[float]) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


def predictions(folder: Path, made: np.ndarray) -> Predictions:
    found = Predictions.create(folder, *made.shape)
    found.put(0, made)
    return Predictions.open(folder)


def test_the_perplexity_of_even_odds_is_the_vocabulary(tmp_path: Path) -> None:
    even = np.full((5, VOCABULARY), 3.5, np.float32)
    tally = Tally(predictions(tmp_path, even), IDS)
    tally.add(even[:2])
    tally.add(even[2:])
    measured = tally.measured()
    assert measured.perplexity == pytest.approx(VOCABULARY)
    assert measured.divergence == pytest.approx(0, abs=1e-3)
    assert measured.agreement == 1


def test_divergence_and_agreement_by_hand(tmp_path: Path) -> None:
    source = logits([0.5, 0.25, 0.25], [0.1, 0.1, 0.8])
    shipped = logits([0.25, 0.5, 0.25], [0.1, 0.1, 0.8]) + 7  # logits are free up to a constant
    tally = Tally(predictions(tmp_path, source), [0, 1])
    tally.add(shipped)
    measured = tally.measured()
    assert measured.perplexity == pytest.approx(2)  # token 1 follows the first position, which gives it 0.5
    by_hand = (0.5 * math.log(2) + 0.25 * math.log(0.5)) / 2
    assert measured.divergence == pytest.approx(by_hand, rel=5e-3)  # float16
    assert measured.agreement == 0.5


def test_a_tie_in_float16_is_no_disagreement(tmp_path: Path) -> None:
    close = np.zeros((2, 50_000), np.float32)
    close[:, 777] = 1e-4  # less than float16 can tell at log 1/50,000
    tally = Tally(predictions(tmp_path, close), [0, 1])
    tally.add(close)
    assert tally.measured().agreement == 1
