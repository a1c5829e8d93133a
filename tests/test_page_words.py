"""The page's figures and sentences (web/words.py runs in MicroPython there and in CPython here)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import words

ARCHITECTURE = Path(__file__).parents[1] / "ARCHITECTURE.md"


def done(**changes: Any) -> dict[str, Any]:
    message = {"tokens": 12, "tokens_per_second": 3.26, "first_token_seconds": 0.41, "reason": "eos"}
    return message | changes


def test_every_fault_kind_of_the_protocol_has_its_words() -> None:
    line = re.search(r"^Fault kinds: (.*?)\. ", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    assert line
    assert set(re.findall(r"`(\w+)`", line.group(1))) == set(words.FAULTS)


def test_an_unknown_fault_is_an_internal_one_and_keeps_its_detail() -> None:
    assert words.fault_sentence("new", "It broke.") == f"{words.FAULTS['internal']} It broke."
    assert words.fault_sentence("memory", "") == words.FAULTS["memory"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 kB"), (1, "1 kB"), (999_499, "999 kB"), (97_400_000, "97 MB"), (1_400_000_000, "1.40 GB")],
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (90, "2 min"), (5400, "1.5 h")])
def test_waiting_is_rounded(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_a_download_shows_bytes_rate_and_time_left() -> None:
    message = {"stage": "download", "done": 43_000_000, "total": 97_000_000, "rate": 11_200_000, "seconds_left": 4.8}
    assert words.progress(message) == "Downloading · 43 MB of 97 MB · 11 MB/s · 5 s left"


def test_without_a_rate_there_is_no_time_left() -> None:
    message = {"stage": "download", "done": 0, "total": 97_000_000, "rate": 0, "seconds_left": None}
    assert words.progress(message) == "Downloading · 0 kB of 97 MB"


def test_prefill_counts_tokens() -> None:
    message = {"stage": "prefill", "done": 64, "total": 512, "rate": 40.0, "seconds_left": 11.2}
    assert words.progress(message) == "Reading · 64 of 512 tokens · 11 s left"


def test_figures_of_an_answer() -> None:
    assert words.figures(done()) == "12 tokens · 3.3 tokens/s · first after 0.4 s"
    assert words.figures(done(tokens_per_second=61.7)) == "12 tokens · 62 tokens/s · first after 0.4 s"
    assert words.figures(done(tokens=1, tokens_per_second=0.0)) == "1 token · first after 0.4 s"
    assert words.figures(done(reason="stopped")).endswith(" · stopped")


def test_only_whole_sentences_are_read_aloud() -> None:
    text = "It is Paris. And Rome is"
    assert text[: words.sentences(text, 0)] == "It is Paris. "
    assert words.sentences(text, 13) == 13
    assert words.sentences("one\ntwo", 0) == 4
