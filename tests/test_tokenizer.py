"""The browser's tokenizer (npm @huggingface/tokenizers, under Node) against the Rust library on tricky strings."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import lenml
import real_model
from exporter.native import RustTokenizer
from handbill.session import Tokenizer
from handbill.stream import REPLACEMENT, Detokenizer
from tricky_strings import STRINGS


def path_of(family: str) -> Path:
    if family == "smollm2":
        return real_model.FOLDER / real_model.manifest().tokenizer
    return lenml.tokenizer_path(family)


def in_browser(path: Path, strings: list[str], sequences: list[list[int]]) -> tuple[list[list[int]], list[str]]:
    """(ids of each string, text of each sequence), as the browser's library has them."""
    lenml.install()
    node = shutil.which("node")
    assert node, "npm is installed but node is not"
    job = json.dumps({"tokenizer": str(path), "strings": strings, "sequences": sequences})
    run = subprocess.run(
        [node, "parity.mjs"], input=job, cwd=lenml.FOLDER, check=True, capture_output=True, encoding="utf-8"
    )
    answer = json.loads(run.stdout)
    return answer["ids"], answer["texts"]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join(map(detokenizer.push, ids)) + detokenizer.finish()


def test_there_are_200_different_tricky_strings() -> None:
    assert len(set(STRINGS)) >= 200


@pytest.mark.parametrize("family", [*lenml.FAMILIES, pytest.param("smollm2", marks=pytest.mark.model)])
def test_browser_and_rust_agree(family: str) -> None:
    path = path_of(family)
    rust = RustTokenizer(path)
    ids = [rust.encode(text) for text in STRINGS]
    rng = random.Random(1)
    vocabulary = rust.vocabulary
    noise = [[rng.randrange(vocabulary) for _ in range(rng.randint(1, 8))] for _ in range(200)]
    cut = [some[: rng.randint(1, len(some))] for some in ids]
    got_ids, got_texts = in_browser(path, STRINGS, [*ids, *noise, *cut])

    different = [text for text, want, got in zip(STRINGS, ids, got_ids, strict=True) if want != got]
    assert not different
    want_texts = [rust.decode(some) for some in [*ids, *noise, *cut]]
    assert got_texts[: len(ids)] == want_texts[: len(ids)]
    for want, got in zip(want_texts, got_texts, strict=True):
        # With ByteFallback, Rust turns each byte of a broken run into U+FFFD, the browser only the broken character.
        assert want == got or (family in ("gemma", "gemma2", "gemma3", "llama2") and REPLACEMENT in want)


@pytest.mark.parametrize("family", [*lenml.FAMILIES, pytest.param("smollm2", marks=pytest.mark.model)])
def test_streaming_gives_the_text_of_the_whole(family: str) -> None:
    rust = RustTokenizer(path_of(family))
    for text in STRINGS:
        ids = rust.encode(text)
        assert streamed(rust, ids) == rust.decode(ids)
    ids = [token for text in STRINGS for token in rust.encode(text)]
    assert streamed(rust, ids) == rust.decode(ids)
