"""Threads that compute with one core each, for the pieces of a matrix.

By itself torch splits every operation among all cores and waits for the slowest at its end. A piece goes through thirty
short operations: with a core for each piece nobody waits until the matrix is done, and no sum depends on the number of
cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch computes with."""
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(cores, initializer=partial(torch.set_num_threads, 1)) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)  # the setting is a thread's own, but new threads begin with the last one made
