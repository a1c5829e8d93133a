"""The threads that go through a matrix: one core each, and nothing that they leave behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from exporter.workers import workers


@pytest.fixture(autouse=True)
def two_cores() -> Iterator[None]:
    cores = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(cores)


def in_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_each_thread_computes_alone_and_the_caller_as_before() -> None:
    both = threading.Barrier(2)  # which one thread would not pass

    def work(_: int) -> int:
        both.wait(timeout=30)
        return torch.get_num_threads()

    with workers() as pool:
        assert list(pool.map(work, range(4))) == [1, 1, 1, 1]
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == in_a_new_thread() == 2
