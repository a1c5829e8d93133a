"""Precompressed copies: ``file.br`` and ``file.gz`` beside every file of the site that shrinks.

Each result is kept in the cache by the sha256 of its input, so that only what changed is compressed again.
"""

from __future__ import annotations

import concurrent.futures
import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path

import brotli

SUFFIXES = {".wasm", ".memory", ".mjs", ".js", ".py", ".css", ".json", ".html", ".svg", ".txt", ".onnx"}
MIN_BYTES = 1024
SILENT_BELOW = 4_000_000
"""Bytes to compress below which no progress is worth showing: that is done within a second."""

BROTLI_QUALITY = 9
"""Measured on ort-wasm-simd-threaded.wasm (14.2 MB, one core): quality 5 gives 2.86 MB in 0.4 s, 9 gives 2.67 MB in
2.6 s, 11 gives 2.30 MB in 36 s. All of ORT at 11 would hold a first build up for four minutes."""

GZIP_LEVEL = 9
ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    ".br": lambda data: bytes(brotli.compress(data, quality=BROTLI_QUALITY, lgwin=24)),
    ".gz": lambda data: gzip.compress(data, GZIP_LEVEL, mtime=0),
}
_SETTINGS = {".br": f"br{BROTLI_QUALITY}", ".gz": f"gz{GZIP_LEVEL}"}


def compressible(path: Path) -> bool:
    """Whether ``path`` gets compressed copies: text or code above 1 KB (weights and wheels do not shrink)."""
    return path.suffix in SUFFIXES and path.stat().st_size > MIN_BYTES


def precompress(files: dict[Path, str], cache: Path, link: Callable[[Path, Path], None]) -> None:
    """Put the compressed copies of ``files`` (path to sha256 in hex) beside them, by way of ``cache``.

    ``link(source, target)`` places a cached copy. A copy that would be no smaller than its file is left out.
    Progress goes to standard output with rate and time left, for a first build takes half a minute.
    """
    cache.mkdir(parents=True, exist_ok=True)
    jobs = [
        (path, suffix, cache / f"{digest}.{_SETTINGS[suffix]}")
        for path, digest in files.items()
        for suffix in ENCODINGS
    ]
    # Two files may have the same bytes and then share one copy. Largest first, so that the cores finish together.
    waiting = {copy: (path, suffix) for path, suffix, copy in jobs if not copy.exists()}
    order = sorted(waiting, key=lambda copy: -waiting[copy][0].stat().st_size)
    total = sum(path.stat().st_size for path, _ in waiting.values())
    done, start, told = 0, time.monotonic(), 0.0
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())  # threads: both compressors release the GIL
    try:
        running = {pool.submit(_compress, *waiting[copy], copy): waiting[copy][0] for copy in order}
        for future in concurrent.futures.as_completed(running):
            future.result()
            done += running[future].stat().st_size
            now = time.monotonic()
            if total > SILENT_BELOW and (now - told > 1 or done == total):
                told = now
                rate = done / max(now - start, 1e-3)
                left = f"{rate / 1e6:.1f} MB/s, {(total - done) / rate:.0f} s left"
                print(f"\rcompress: {done / 1e6:.0f} of {total / 1e6:.0f} MB, {left} ", end="", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C or a full disk, do not go on with the rest
    if total > SILENT_BELOW:
        print(flush=True)
    for path, suffix, copy in jobs:
        if copy.stat().st_size:
            link(copy, path.with_name(path.name + suffix))


def _compress(path: Path, suffix: str, copy: Path) -> None:
    """Write the compressed form of ``path`` to ``copy``; an empty file says that it does not shrink."""
    data = path.read_bytes()
    small = ENCODINGS[suffix](data)
    beside = copy.with_name(f"{copy.name}.{os.getpid()}.partial")
    beside.write_bytes(small if len(small) < len(data) else b"")
    beside.replace(copy)
