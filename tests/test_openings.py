"""Openings: snapshots of the CPU session's KV cache, and the loop that keeps and recalls them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpu_session
import kernel_graph
from cpu_session import FaultError
from exporter import graph, plan
from fake_model import EOS, FakeSession, FakeTokenizer
from handbill.generate import Done, Generator, Prefill
from handbill.openings import LEAST, Openings
from handbill.sampling import Settings
from kernel_graph import Shape

GREEDY = Settings(temperature=0, max_tokens=6)
SHAPES = {"llama": Shape(), "odd_head": Shape(head_dim=80, kv_heads=1), "wide_head": Shape(head_dim=128, heads=2)}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("build", "threads"), [("relaxed", 1), ("plain", 2)])
@pytest.mark.parametrize("length", [1, 31, 45, 64])
def test_a_snapshot_is_what_prefill_computed(tmp_path: Path, name: str, build: str, threads: int, length: int) -> None:
    shape = SHAPES[name]
    model = kernel_graph.build(tmp_path, shape)
    plan.write(graph.load(model), tmp_path / "plan.json")
    ids = np.random.default_rng(length).integers(0, shape.vocabulary, 80).tolist()
    after: dict[str, Any] = {"ids": ids[length : length + 10], "logits": True}
    steps = [
        {"ids": ids[:length]},
        {**after, "snapshot": length},
        {"ids": ids[::-1], "rewind": 0},
        {**after, "restore": {"length": length}},
    ]
    elsewhere = [{"ids": ids[::-1]}, {**after, "restore": {"length": length}}]  # in a memory laid out otherwise
    refused = [{"ids": ids[:5]}, {**after, "restore": {"length": length, "skip": 1}}, {**after, "rewind": 5}]
    results = cpu_session.run_all(
        [
            cpu_session.case(tmp_path, steps, build=build, threads=threads),
            cpu_session.case(tmp_path, elsewhere, build=build, threads=threads, architecture={"context": 96}),
            cpu_session.case(tmp_path, refused, build=build, threads=threads),
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

    async def restore(self, name: str, length: int) -> bool:
        if name in self.broken:
            del self.files[name]
            return False
        self.session.ids[:] = self.files[name]
        assert len(self.session.ids) == length
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
