"""glibc's malloc, told to keep what a piece of a matrix needs from one piece to the next.

By itself it hands temporaries of some megabytes back to the system and asks for them again: 7,700 page faults for each
million weights, which took more than half of the time of rounding them (49 ms without this, 22 with it, measured).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""From malloc.h; mallopt(3)."""

IN_HEAP = 8 << 20
"""Bytes up to which an array lies in the heap: a piece in float32 has 4 MB (weights.PIECE). What is larger, such as a
matrix's Blocks, is mapped on its own and leaves no hole."""

KEPT = 256 << 20
"""Bytes at the heap's end that stay."""


def keep_pieces() -> None:
    """Set both thresholds for the life of the process; nothing where the C library is another one.

    All threads share the one heap that they are for: a heap of a thread's own ends at 64 MB and is handed back whole.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, IN_HEAP)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT)
        libc.mallopt(_M_ARENA_MAX, 1)
