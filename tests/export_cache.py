"""Where tests keep the exports of tiny models between runs, for all processes that run tests side by side."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    *("exporter/*.py", "exporter/*.toml", "exporter/*.txt", "web/handbill/*.py"),
    *("tests/tiny_*.py", "tests/page_models.py"),
]
TOOLS = ["torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime"]


@cache
def home() -> Path:
    """A folder in .cache/tiny named after everything that an export depends on."""
    key = hashlib.sha256(repr([importlib.metadata.version(tool) for tool in TOOLS]).encode())
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        key.update(path.read_bytes())
    return ROOT / ".cache" / "tiny" / key.hexdigest()[:16]


def made(folder: Path, make: Callable[[Path], object]) -> Path:
    """``folder``, which ``make(partial)`` fills where it is not there: once, whole, and by one process alone."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(folder)
    return folder
