"""Progress of a stage, for a terminal and for a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def stage(title: str, total: int, unit: str, unit_scale: bool = False) -> Iterator[Any]:
    """A progress bar with rate and time left, which stays on the terminal as a line of what was done."""
    pause = 0.2 if sys.stderr.isatty() else 10.0  # seconds between redraws; a log gets a line, not a thousand
    scaled = unit_scale or total > 1 << 20
    with tqdm(total=total, desc=title, unit=unit, unit_scale=scaled, mininterval=pause, ascii=" #") as bar:
        yield bar
        bar.update(total - bar.n)
