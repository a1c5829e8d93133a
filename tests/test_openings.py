"""Openings: snapshots of the CPU session's KV cache, and the loop that keeps and recalls them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpu_session
import kernel_graph
from cpu_session import FaultError
from exporter import graph, plan
from fake_model import EOS, FakeSession, FakeTokenizer
from handbill.events import Done, Event, Prefill
from handbill.generate import PREPARED, Generator
from handbill.openings import LEAST, Openings
from handbill.sampling import Settings
from kernel_graph import Shape

GREEDY = Settings(temperature=0, max_tokens=6)
SHAPES = {"llama": Shape(), "odd_head": Shape(head_dim=80, kv_heads=1), "wide_head": Shape(head_dim=128, heads=2)}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", [1, 31, 45, 64])
def test_a_snapshot_is_what_prefill_computed(tmp_path: Path, name: str, threads: int, length: int) -> None:
    shape = SHAPES[name]
    model = kernel_graph.build(tmp_path, shape)
    plan.write(graph.load(model), tmp_path / "plan.json")
    ids = np.random.default_rng(length).integers(0, shape.vocabulary, 80).tolist()
    after: dict[str, Any] = {"ids": ids[length : length + 10], "logits": True}
    steps = [
        {"ids": ids[:length]},
        {**after, "snapshot": length},
        {"ids": ids[::-1], "rewind": 0},
        {**after, "restore": {"ids": ids[:length]}},
    ]
    elsewhere = [{"ids": ids[::-1]}, {**after, "restore": {"ids": ids[:length]}}]  # in a memory laid out otherwise
    refused = [{"ids": ids[:5]}, {**after, "restore": {"ids": ids[:length], "skip": 1}}, {**after, "rewind": 5}]
    results = cpu_session.run_all(
        [
            cpu_session.case(tmp_path, steps, threads=threads),
            cpu_session.case(tmp_path, elsewhere, threads=threads, architecture={"context": 96}),
            cpu_session.case(tmp_path, refused, threads=threads),
        ]
    )
    first, second, third = [[] if isinstance(result, FaultError) else result[1] for result in results]
    assert np.array_equal(first[3].logits, first[1].logits) and first[3].restored
    assert np.array_equal(second[1].logits, first[1].logits) and second[1].restored
    assert third[1].restored is False
    assert np.array_equal(third[2].logits, third[1].logits)


class Shelf:
    """An OpeningStore over a FakeSession, whose KV cache is its list of tokens."""

    def __init__(self, session: FakeSession) -> None:
        self.session = session
        self.files: dict[str, list[int]] = {}
        self.broken: set[str] = set()

    @property
    def names(self) -> list[str]:
        return list(self.files)

    async def save(self, name: str, length: int) -> None:
        self.files[name] = self.session.ids[:length]

    async def restore(self, name: str, ids: Sequence[int]) -> bool:
        if name in self.broken:
            del self.files[name]
            return False
        self.session.ids[:] = self.files[name]
        assert self.session.ids == list(ids)
        return True


SYSTEM = "You are a friendly assistant. "


async def visit(shelf: Shelf, question: str) -> tuple[Done, Prefill]:
    """A new session that answers one question: the closing event and the first progress."""
    shelf.session.ids.clear()
    generator = Generator(shelf.session, FakeTokenizer(), [EOS], lambda: 0.0, openings=Openings(shelf))
    events = [event async for event in generator.answer(SYSTEM + question, GREEDY)]
    await generator.keep_opening(f"{SYSTEM}Yes", f"{SYSTEM}Why")
    assert isinstance(events[0], Prefill) and isinstance(events[-1], Done)
    return events[-1], events[0]


def test_the_next_visit_reads_only_what_is_new() -> None:
    shelf = Shelf(FakeSession())
    first, _ = asyncio.run(visit(shelf, "Who?"))
    assert [len(kept) for kept in shelf.files.values()] == [len(SYSTEM)]
    again, progress = asyncio.run(visit(shelf, "Who?"))
    assert (first.reused_tokens, again.reused_tokens) == (0, len(SYSTEM))
    assert progress.total == len("Who?")
    assert again.ids == first.ids
    other, _ = asyncio.run(visit(shelf, "When did it happen?"))
    assert other.reused_tokens == len(SYSTEM) and len(shelf.files) == 1


def test_another_beginning_finds_nothing() -> None:
    shelf = Shelf(FakeSession())
    asyncio.run(visit(shelf, "Who?"))
    openings = Openings(shelf)
    changed = FakeTokenizer().encode(SYSTEM.replace("friendly", "grumpy..") + "Who?")
    assert asyncio.run(openings.recall(changed, 0)) == 0
    same = FakeTokenizer().encode(SYSTEM + "Who?")
    assert asyncio.run(openings.recall(same, len(SYSTEM))) == 0  # The KV cache holds as much already.
    assert asyncio.run(openings.recall(same, len(SYSTEM) - 1)) == len(SYSTEM)
    assert asyncio.run(openings.recall(same[: len(SYSTEM) - 1], 0)) == 0


def test_an_opening_is_of_one_adapter() -> None:
    shelf = Shelf(FakeSession())
    asyncio.run(visit(shelf, "Who?"))
    generator = Generator(shelf.session, FakeTokenizer(), [EOS], lambda: 0.0, openings=Openings(shelf))

    async def reused(adapter: str) -> int:
        shelf.session.ids.clear()
        await generator.adapt(adapter)
        events = [event async for event in generator.answer(SYSTEM + "Who?", GREEDY)]
        await generator.keep_opening(f"{SYSTEM}Yes", f"{SYSTEM}Why")
        assert isinstance(events[-1], Done)
        return events[-1].reused_tokens

    adapters = ["legal", "notes", "legal", "", "notes"]
    assert [asyncio.run(reused(adapter)) for adapter in adapters] == [0, 0, len(SYSTEM), len(SYSTEM), len(SYSTEM)]
    assert len(shelf.files) == 3


def test_a_damaged_opening_is_computed_anew() -> None:
    shelf = Shelf(FakeSession())
    first, _ = asyncio.run(visit(shelf, "Who?"))
    shelf.broken = set(shelf.files)
    again, _ = asyncio.run(visit(shelf, "Who?"))
    assert (again.reused_tokens, again.ids) == (0, first.ids)
    shelf.broken = set()
    assert asyncio.run(visit(shelf, "Who?"))[0].reused_tokens == len(SYSTEM)


def test_what_is_not_worth_a_file_is_not_kept() -> None:
    shelf = Shelf(FakeSession())
    openings = Openings(shelf)
    shelf.session.ids = list(range(LEAST))
    asyncio.run(openings.keep(shelf.session.ids[:-1]))
    assert not shelf.files
    asyncio.run(openings.keep(shelf.session.ids))
    assert len(shelf.files) == 1


def test_only_what_the_cache_begins_with_is_kept() -> None:
    shelf = Shelf(FakeSession())
    generator = Generator(shelf.session, FakeTokenizer(), [EOS], lambda: 0.0, openings=Openings(shelf))

    async def go() -> None:
        async for _ in generator.answer("Another beginning altogether.", GREEDY):
            pass
        await generator.keep_opening(f"{SYSTEM}Yes", f"{SYSTEM}Why")

    asyncio.run(go())
    assert not shelf.files


QUESTIONS = ("Who are you, and why?", "Is this a lighthouse?")


def test_what_was_read_ahead_is_not_read_when_it_is_asked() -> None:
    shelf = Shelf(FakeSession())
    reader = Generator(shelf.session, FakeTokenizer(), [EOS], lambda: 0.0, openings=Openings(shelf))

    async def prepare() -> list[bool]:
        return [await reader.prepare(SYSTEM + question) for question in QUESTIONS]

    assert asyncio.run(prepare()) == [True, True]
    assert sum(tokens for tokens, _ in shelf.session.steps) == len(SYSTEM + QUESTIONS[0]) + len(QUESTIONS[1]) - 2
    computed = len(shelf.session.steps)
    assert asyncio.run(prepare()) == [True, True] and len(shelf.session.steps) == computed
    for question in QUESTIONS:
        done, progress = asyncio.run(visit(shelf, question))
        assert (done.reused_tokens, progress.total) == (len(SYSTEM + question) - 1, 1)
        alone, _ = asyncio.run(visit(Shelf(FakeSession()), question))
        assert done.ids == alone.ids


def test_reading_ahead_ends_within_a_step_when_somebody_asks() -> None:
    shelf = Shelf(FakeSession(chunk=128))
    reader = Generator(shelf.session, FakeTokenizer(), [EOS], lambda: 0.0, openings=Openings(shelf))

    def come() -> None:
        if len(shelf.session.steps) == 2:
            reader.stop()

    shelf.session.on_step = come

    async def go() -> tuple[bool, list[Event]]:
        done = await reader.prepare(SYSTEM * 3)
        assert await reader.prepare("") and await reader.prepare("x" * 600)  # Not worth it, and too long.
        return done, [event async for event in reader.answer(SYSTEM * 3, GREEDY)]

    done, events = asyncio.run(go())
    assert not done and not shelf.files
    assert shelf.session.steps[:2] == [(PREPARED, 1)] * 2
    assert isinstance(events[-1], Done) and events[-1].reused_tokens == 2 * PREPARED
    alone, _ = asyncio.run(visit(Shelf(FakeSession()), SYSTEM * 2))
    assert events[-1].ids == alone.ids


def test_nothing_is_read_ahead_during_an_answer_or_where_nothing_can_be_kept() -> None:
    shelf = Shelf(FakeSession())
    reader = Generator(shelf.session, FakeTokenizer(), [EOS], lambda: 0.0, openings=Openings(shelf))

    async def go() -> None:
        async for _ in reader.answer(SYSTEM, GREEDY):
            assert not await reader.prepare(SYSTEM + QUESTIONS[0])

    asyncio.run(go())
    assert not shelf.files
    session = FakeSession()
    bare = Generator(session, FakeTokenizer(), [EOS], lambda: 0.0)
    assert not asyncio.run(bare.prepare(SYSTEM + QUESTIONS[0])) and not session.steps
