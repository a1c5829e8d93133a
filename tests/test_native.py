"""NativeSession against NumPy on a one-layer graph: chunks, growth of the KV cache, rewind, positions, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import tiny_graph
from exporter import native
from exporter.native import NativeSession, RustTokenizer
from handbill.events import Done
from handbill.generate import Generator
from handbill.sampling import Settings
from handbill.session import SessionError
from handbill.speculate import PromptLookup


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("native") / "model.onnx"
    tiny_graph.write(path)
    return path


@pytest.fixture(scope="module")
def session(graph: Path) -> Iterator[NativeSession]:
    session = NativeSession(graph, tiny_graph.KV, context=600, chunk=300, threads=1)
    yield session
    session.close()


def ids_of(count: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, tiny_graph.VOCABULARY, count).tolist()


def test_one_step_matches_numpy(session: NativeSession) -> None:
    ids = ids_of(20)
    session.rewind(0)
    np.testing.assert_allclose(session.logits(ids, positions=20), tiny_graph.logits(ids), atol=2e-6)


def test_chunks_and_decode_match_numpy_while_the_cache_grows(session: NativeSession) -> None:
    ids = ids_of(600)
    want = tiny_graph.logits(ids)
    session.rewind(0)
    at = 0
    for count in (200, 1, 1, 60, 299, 1, 38):  # past the first capacity, past its double, to the very end
        got = session.logits(ids[at : at + count], positions=min(count, 3))
        at += count
        np.testing.assert_allclose(got, want[at - min(count, 3) : at], atol=5e-6)
        assert session.length == at
    with pytest.raises(ValueError, match="context is 600"):
        session.logits([1])


@hypothesis_settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=6))
def test_after_any_rewinds_the_logits_are_those_of_the_tokens_kept(
    session: NativeSession, moves: list[tuple[int, int]]
) -> None:
    session.rewind(0)
    ids: list[int] = []
    for seed, (keep, add) in enumerate(moves):
        del ids[keep:]
        session.rewind(len(ids))
        fresh = ids_of(add, seed)
        ids += fresh
        np.testing.assert_allclose(session.logits(fresh), tiny_graph.logits(ids)[-1:], atol=5e-6)


def test_candidates_are_the_64_largest_logits_of_each_position(session: NativeSession) -> None:
    ids = ids_of(9)
    session.rewind(0)
    candidates = asyncio.run(session.step(ids, positions=4))
    want = tiny_graph.logits(ids)[-4:]
    assert len(candidates) == 4
    for got, row in zip(candidates, want, strict=True):
        assert list(got.ids) == np.argsort(-row, kind="stable")[:64].tolist()
        np.testing.assert_allclose(got.logits, np.sort(row)[::-1][:64], atol=5e-6)


@pytest.mark.parametrize(("count", "positions"), [(0, 1), (301, 1), (4, 5), (4, -1)])
def test_a_wrong_count_is_refused(session: NativeSession, count: int, positions: int) -> None:
    session.rewind(0)
    with pytest.raises(ValueError, match="Cannot step"):
        session.logits([1] * count, positions)
    assert session.length == 0


def test_a_step_without_positions_is_refused_but_tokens_may_go_in_without_logits(session: NativeSession) -> None:
    with pytest.raises(ValueError, match="at least one position"):
        asyncio.run(session.step([1, 2], positions=0))
    assert session.length == 0
    ids = ids_of(9)
    assert session.logits(ids[:6], positions=0).shape == (0, tiny_graph.VOCABULARY)
    np.testing.assert_allclose(session.logits(ids[6:]), tiny_graph.logits(ids)[-1:], atol=5e-6)


@pytest.mark.parametrize("length", [-1, 6])
def test_a_wrong_rewind_is_refused(session: NativeSession, length: int) -> None:
    session.rewind(0)
    session.logits(ids_of(5))
    with pytest.raises(ValueError, match="KV cache holds 5"):
        session.rewind(length)


def test_a_failed_step_leaves_the_cache_as_it_was(session: NativeSession) -> None:
    ids = ids_of(6)
    session.rewind(0)
    session.logits(ids[:5])
    with pytest.raises(SessionError, match="onnxruntime failed on 1 tokens after 5") as failure:
        session.logits([tiny_graph.VOCABULARY])  # no such row in the embedding
    assert failure.value.kind == "internal"
    assert session.length == 5
    np.testing.assert_allclose(session.logits(ids[5:]), tiny_graph.logits(ids)[-1:], atol=5e-6)


def test_a_model_that_computes_no_finite_numbers_says_so(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(graph)
    (head,) = (each for each in model.graph.initializer if each.name == "head")
    head.CopyFrom(onnx.numpy_helper.from_array(np.full(head.dims, np.inf, np.float32), "head"))
    onnx.save(model, tmp_path / "model.onnx")
    session = NativeSession(tmp_path / "model.onnx", tiny_graph.KV, context=100, threads=1)
    with pytest.raises(SessionError, match="no finite numbers") as failure:
        asyncio.run(session.step(ids_of(3)))
    assert (failure.value.kind, session.length) == ("manifest", 0)
    session.close()


def test_the_cache_is_written_in_place(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_FIRST_CAPACITY", 64)
    session = NativeSession(graph, tiny_graph.KV, context=100, threads=1)
    session.logits(ids_of(3))
    before = [value.data_ptr() for value in session._cache.values()]
    session.logits(ids_of(4))
    assert [value.data_ptr() for value in session._cache.values()] == before
    session.logits(ids_of(90))
    assert [value.shape()[2] for value in session._cache.values()] == [100, 100]


def test_a_graph_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(SessionError, match="cannot open"):
        NativeSession(tmp_path / "model.onnx", tiny_graph.KV, context=8)


def test_a_cache_of_another_type_is_refused(graph: Path) -> None:
    with pytest.raises(SessionError, match="float16"):
        NativeSession(graph, replace(tiny_graph.KV, dtype="float16"), context=8)


def test_the_tokenizer_adds_no_bos_and_reads_special_tokens(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end|>", special=True)])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = RustTokenizer(tmp_path / "tokenizer.json")
    ids = tokenizer.encode("é<|end|>")
    assert ids[-1] == len(alphabet) and len(ids) == 3
    assert tokenizer.decode(ids) == "é"
    assert tokenizer.decode(ids[:1]) == "\N{REPLACEMENT CHARACTER}"
    assert tokenizer.encode("") == []


class Letters:
    """One token per printable ASCII character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 32 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(32 + i) for i in ids)


@pytest.mark.parametrize("drafter", [None, PromptLookup()], ids=["plain", "prompt lookup"])
def test_the_loop_over_onnxruntime_gives_numpys_greedy_tokens_turn_after_turn(
    graph: Path, drafter: PromptLookup | None
) -> None:
    session = NativeSession(graph, tiny_graph.KV, context=200, chunk=7, threads=1)
    tokenizer = Letters()
    generator = Generator(session, tokenizer, [0], lambda: 0.0, drafter)

    async def ask(prompt: str) -> Done:
        events = [event async for event in generator.answer(prompt, Settings(temperature=0, max_tokens=30))]
        assert isinstance(events[-1], Done)
        return events[-1]

    prompt = "What is the capital of France?"
    for question in ("", " And of Italy?", " And of Spain?"):
        prompt += question
        want: list[int] = []
        while len(want) < 30:
            token = int(tiny_graph.logits([*tokenizer.encode(prompt), *want])[-1].argmax())
            if token == 0:
                break
            want.append(token)
        done = asyncio.run(ask(prompt))
        assert done.ids == want
        assert not question or done.reused_tokens >= done.prompt_tokens - len(question) - 1
        prompt += tokenizer.decode(want)
