"""The page's figures and sentences (web/words.py runs in MicroPython there and in CPython here)."""

from __future__ import annotations

import html.parser
import json
import re
import string
from pathlib import Path
from typing import Any

import pytest

import words

ROOT = Path(__file__).parents[1]
TABLE: dict[str, dict[str, str]] = json.loads((ROOT / "web" / "words.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def english() -> None:
    words.load(TABLE)
    words.speak("en")


def done(**changes: Any) -> dict[str, Any]:
    message = {"tokens": 12, "tokens_per_second": 3.26, "first_token_seconds": 0.41, "reason": "eos"}
    return message | changes


def places(text: str) -> list[str]:
    """The names in braces."""
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)


def languages() -> set[str]:
    """Those that web/language.js offers."""
    offered = re.search(r"LANGUAGES = \{(.*?)\}", (ROOT / "web" / "language.js").read_text(encoding="utf-8"), re.DOTALL)
    assert offered
    return set(re.findall(r"(\w+):", offered.group(1)))


@pytest.mark.parametrize("row", TABLE)
def test_every_row_has_every_language_and_the_same_places(row: str) -> None:
    assert set(TABLE[row]) == languages()
    assert all(text.strip() == text and text for text in TABLE[row].values())
    assert len({tuple(places(text)) for text in TABLE[row].values()}) == 1


def test_no_row_is_given_twice() -> None:
    pairs: list[str] = []
    json.loads(
        (ROOT / "web" / "words.json").read_text(encoding="utf-8"),
        object_pairs_hook=lambda items: pairs.extend(key for key, value in items if not isinstance(value, str)),
    )
    assert len(pairs) == len(set(pairs)) == len(TABLE)


class Marked(html.parser.HTMLParser):
    """Collects (row, English text) of index.html's elements that name a row, and all text that names none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.unmarked: list[str] = []
        self._open: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        for mark, attribute in (("data-word-label", "aria-label"), ("data-word-placeholder", "placeholder")):
            assert (mark in given) == (attribute in given), (tag, given)
            if mark in given:
                self.found.append((given[mark], given[attribute]))
        if tag not in {"meta", "link", "br", "input"}:
            self._open.append(given.get("data-word"))
            if "data-word" in given:
                self.found.append((given["data-word"], ""))

    def handle_endtag(self, _tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if not text or not self._open:
            return
        if self._open[-1]:
            assert self.found[-1] == (self._open[-1], "")
            self.found[-1] = (self._open[-1], text)
        else:
            self.unmarked.append(text)


def test_the_words_of_the_first_paint_are_the_tables_english() -> None:
    reader = Marked()
    page = (ROOT / "web" / "index.html").read_text(encoding="utf-8")
    attract = (ROOT / "web" / "templates" / "attract.html").read_text(encoding="utf-8")
    reader.feed(page.replace("<!-- attract -->", attract))
    assert len(reader.found) > 30
    assert [(row, TABLE[row]["en"]) for row, _ in reader.found] == reader.found
    # The product's name, its title, places that wait for a figure, and Python have no language.
    assert set(reader.unmarked) == {"Handbill", "…", "$title", "$greeting", "$questions", "import page"}


def test_every_row_is_used() -> None:
    sources = [path for path in (ROOT / "web").glob("*.*") if path.suffix in {".py", ".js", ".html"}]
    sources += (ROOT / "web" / "templates").glob("*.html")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    composed = (
        "fault.",
        "reason.",
        "turns.",
        "bill.why_",
        "moved.",
        "refusal.",
        "runtime.",
        "settings.runtime_",
        "storage.item_",
        "storage.state_",
    )
    assert [row for row in TABLE if f'"{row}"' not in text and not row.startswith(composed)] == []


def test_every_fault_kind_of_the_protocol_has_its_words() -> None:
    line = re.search(r"^Fault kinds: (.*?)\. ", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert line
    kinds = set(re.findall(r"`(\w+)`", line.group(1)))
    assert {f"fault.{kind}" for kind in kinds} <= set(TABLE)


def test_an_unknown_fault_is_an_internal_one() -> None:
    assert words.fault("new") == words.fault("internal") == TABLE["fault.internal"]["en"]
    assert words.fault("memory") == TABLE["fault.memory"]["en"]


def test_another_language_changes_sentences_and_the_decimal_mark() -> None:
    words.speak("de")
    assert words.figures(done()) == "12 Token · 3,3 Token/s · das erste nach 0,4 s"
    assert words.size(1_400_000_000) == "1,40 GB"


@pytest.mark.parametrize(
    ("where", "en", "de"),
    [
        ("cpu 1", "processor, one thread", "Prozessor, ein Thread"),
        ("wasm 4", "processor (WASM), 4 threads", "Prozessor (WASM), 4 Threads"),
        ("webgpu 1", "graphics chip (WebGPU)", "Grafikchip (WebGPU)"),
    ],
)
def test_a_runtime_is_said_in_the_pages_language(where: str, en: str, de: str) -> None:
    assert words.runtime(where) == en
    assert en in words.moved("memory", where)
    words.speak("de")
    assert words.runtime(where) == de
    assert de in words.moved("of some other kind", where)


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


def test_a_download_that_waits_says_for_how_long() -> None:
    message = {
        "stage": "download",
        "done": 43_000_000,
        "total": 97_000_000,
        "rate": 0,
        "seconds_left": None,
        "pause": 8,
    }
    assert words.progress(message) == "Downloading · 43 MB of 97 MB · no answer, trying again in 8 s"


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
    assert text[: words.sentences(text)] == "It is Paris. "
    assert words.sentences(text[13:]) == words.sentences("") == words.sentences(" A.") == 0
    assert words.sentences("one\ntwo") == 4
