"""Text from tokens: whole characters only, the text of the whole, in linear time; stop strings wherever they fall."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbill.stream import REPLACEMENT, Detokenizer, StopStrings

SPECIAL = 256


class Bytes:
    """Every byte is a token, as in the worst case of a byte-level vocabulary; 256 is a special token."""

    decoded = 0

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        self.decoded += len(ids)
        return bytes(i for i in ids if i != SPECIAL).decode(errors="replace")


class Words:
    """Words with a leading space that the first one loses, as Metaspace decoders do; "" stands for a special token."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.words[i] for i in ids).removeprefix(" ")


class FallbackBytes(Bytes):
    """Bytes as Rust's ByteFallback decodes them: a run that is not whole becomes one U+FFFD per byte."""

    def decode(self, ids: Sequence[int]) -> str:
        data = bytes(i for i in ids if i != SPECIAL)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(data)


def stream(detokenizer: Detokenizer, ids: Sequence[int]) -> list[str]:
    return [*map(detokenizer.push, ids), detokenizer.finish()]


@given(st.text())
def test_whole_characters_come_as_soon_as_they_are_whole(text: str) -> None:
    tokenizer = Bytes()
    pieces = stream(Detokenizer(tokenizer), tokenizer.encode(text))
    assert "".join(pieces) == text
    whole = [character for character in text if character != REPLACEMENT]
    assert [piece for piece in pieces if piece.strip(REPLACEMENT)] == whole or REPLACEMENT in text


@given(st.lists(st.integers(0, SPECIAL), max_size=300))
def test_any_bytes_give_the_text_of_the_whole(ids: list[int]) -> None:
    tokenizer = Bytes()
    assert "".join(stream(Detokenizer(tokenizer), ids)) == tokenizer.decode(ids)


@given(st.text(), st.data())
def test_special_tokens_between_bytes_change_nothing(text: str, data: st.DataObject) -> None:
    tokenizer = FallbackBytes()
    ids = tokenizer.encode(text)
    for at in data.draw(st.lists(st.integers(0, len(ids)), max_size=40)):
        ids.insert(at, SPECIAL)
    assert "".join(stream(Detokenizer(tokenizer), ids)) == text


@given(st.lists(st.sampled_from([" a", "b", " ", "", "", " c d", "é"]), max_size=120))
def test_words_keep_their_spaces(words: list[str]) -> None:
    tokenizer = Words(words)
    ids = range(len(words))
    assert "".join(stream(Detokenizer(tokenizer), ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    "ids",
    [
        list(b"word " * 2000),
        list("😀é中".encode() * 1000),
        [0xE2] * 10_000,
        [*b"x", *[SPECIAL] * 10_000],
        [SPECIAL] * 10_000,
    ],
    ids=["words", "emoji", "broken", "special", "only special"],
)
def test_the_work_is_linear(ids: list[int]) -> None:
    tokenizer = Bytes()
    detokenizer = Detokenizer(tokenizer)
    text = "".join(stream(detokenizer, ids))
    assert tokenizer.decoded < 70 * len(ids)
    assert text == tokenizer.decode(ids)


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    detokenizer = Detokenizer(Bytes())
    assert stream(detokenizer, list("aé".encode()[:-1])) == ["a", "", REPLACEMENT]
    assert detokenizer.finish() == ""


def cut(stop: Sequence[str], pieces: Sequence[str]) -> tuple[str, str | None]:
    strings = StopStrings(stop)
    text = "".join(map(strings.push, pieces))
    return text + strings.finish(), strings.found


@pytest.mark.parametrize(
    ("stop", "pieces", "text", "found"),
    [
        (["END"], ["one EN", "D two"], "one ", "END"),
        (["END"], ["one E", "N", "D"], "one ", "END"),
        (["END"], ["EEN", "ENDS"], "EEN", "END"),
        (["END"], ["one EN"], "one EN", None),
        (["END"], ["one EN", "T"], "one ENT", None),
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb", "\n\n"),
        (["aab"], ["aaa", "b"], "a", "aab"),
        (["abc", "b"], ["abc"], "a", "b"),
        (["abc", "bc"], ["abc"], "", "abc"),
        (["x"], ["xyz"], "", "x"),
        (["é"], ["caf", "é"], "caf", "é"),
        ([], ["anything"], "anything", None),
    ],
)
def test_a_stop_string_is_cut_off(stop: list[str], pieces: list[str], text: str, found: str | None) -> None:
    assert cut(stop, pieces) == (text, found)


def test_only_what_could_become_a_stop_string_is_held_back() -> None:
    strings = StopStrings(["STOP", "SOS"])
    assert strings.push("an S") == "an "
    assert strings.push("O") == ""
    assert strings.push("B") == "SOB"
    assert strings.push("STO") == ""
    assert strings.finish() == "STO" and strings.finish() == ""


def test_nothing_is_shown_after_a_stop_string() -> None:
    strings = StopStrings(["."])
    assert strings.push("a.b") == "a"
    assert strings.push("c") == "" and strings.finish() == ""


@given(
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
)
def test_how_the_text_is_split_does_not_matter(stop: list[str], pieces: list[str]) -> None:
    assert cut(stop, pieces) == cut(stop, list("".join(pieces)))
    text, found = cut(stop, pieces)
    assert "".join(pieces).startswith(text + (found or ""))
    assert not any(string in text for string in stop)
    assert found is not None or text == "".join(pieces)
