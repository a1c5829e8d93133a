"""Tokenizers out of a GGUF's metadata: the same ids as the family's own tokenizer.json, here and in the browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import lenml
import real_model
import tiny_checkpoint
import tiny_gguf
from exporter.checkpoint import open_checkpoint
from exporter.errors import ExportError
from exporter.gguf_pre_tokenizers import PRE_TOKENIZERS
from exporter.gguf_tokenizer import build_tokenizer, end_ids
from test_tokenizer import in_browser
from tricky_strings import STRINGS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
PRE = {
    "gpt2": "gpt-2",
    "gpt4": "dbrx",
    "gpt4o": "gpt-4o",
    "llama3_2": "llama-bpe",
    "qwen2_5": "qwen2",
    "qwen3": "qwen2",
}
MORE = [
    "▁a ▁▁ b",
    "\n" * 40,
    " " * 40 + "x",
    "\t\t\tif x:\n\t\t\t\treturn",
    "== === ==== " * 3,
    "-" * 70,
    "aaaaaaaaaaa" * 3,
]


class Metadata:
    """Stands in for a GGUFFile: its metadata alone."""

    path = Path("family.gguf")

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def value(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)


def metadata_of(family: str) -> Metadata:
    """What llama.cpp's converter writes of the real tokenizer.json of ``family``."""
    made = json.loads(lenml.tokenizer_path(family).read_text("utf-8"))
    added = {token["id"]: token for token in made["added_tokens"]}
    by_id = {index: token for token, index in made["model"]["vocab"].items()}
    by_id |= {index: token["content"] for index, token in added.items()}
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(max(by_id) + 1)]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in made["model"]["merges"]]
    kinds = [NORMAL if index in by_id else UNUSED for index in range(len(tokens))]
    for index, token in added.items():
        kinds[index] = CONTROL if token["special"] else USER_DEFINED
    values: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    if family in PRE:
        values |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": PRE[family], "tokenizer.ggml.merges": merges}
        return Metadata(values)
    # SentencePiece: a score for each token instead of merges, and plain spaces in what the user defined.
    rank: dict[str, int] = {}
    for number, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), number)
    scores = [-float(rank.get(token, len(merges))) for token in tokens]
    for index, token in enumerate(tokens):
        if token.startswith("<0x") and len(token) == 6:
            kinds[index] = BYTE
        if kinds[index] in (CONTROL, USER_DEFINED):
            scores[index] = -1000.0
        if kinds[index] == USER_DEFINED:
            tokens[index] = token.replace("▁", " ")
        if token == made["model"]["unk_token"]:
            kinds[index] = UNKNOWN
            values["tokenizer.ggml.unknown_token_id"] = index
    values |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores}
    values["tokenizer.ggml.add_space_prefix"] = family == "llama2"
    return Metadata(values)


@pytest.mark.parametrize("family", [name for name in lenml.FAMILIES if name != "gemma"])  # its vocabulary is gemma2's
def test_ids_are_those_of_the_familys_own_tokenizer(family: str, tmp_path: Path) -> None:
    assert_same(build_tokenizer(metadata_of(family)), family, tmp_path)


@pytest.mark.model
@pytest.mark.parametrize(("model", "family"), [("gemma-3-270m", "gemma3")])
def test_a_real_ggufs_ids_are_those_of_its_familys_own_tokenizer(model: str, family: str, tmp_path: Path) -> None:
    """The vocabulary as llama.cpp's converter really wrote it, and the tokenizer.json that an export has made of it.

    Of a text nothing is left out: the converter calls <mask> and the unused tokens control, where the family does not.
    """
    manifest = real_model.manifest(model)
    built = Tokenizer.from_file(str(real_model.MODELS / model / manifest.tokenizer))
    assert_same(built, family, tmp_path, skip_special_tokens=False)


def assert_same(built: Tokenizer, family: str, tmp_path: Path, skip_special_tokens: bool = True) -> None:
    """``built`` says what the tokenizer.json of ``family`` says, here and in the browser's library."""
    own = Tokenizer.from_file(str(lenml.tokenizer_path(family)))
    strings = [*STRINGS, *MORE]
    ids = [own.encode(text, add_special_tokens=False).ids for text in strings]
    assert [built.encode(text, add_special_tokens=False).ids for text in strings] == ids
    for each in ids:
        assert built.decode(each, skip_special_tokens) == own.decode(each, skip_special_tokens)
    built.save(str(tmp_path / "tokenizer.json"))
    in_page, texts = in_browser(tmp_path / "tokenizer.json", strings, ids)
    assert in_page == ids
    assert texts == [built.decode(each) for each in ids]


def test_phi3s_control_tokens_take_the_newline_after_them() -> None:
    pieces = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|end|>", "▁", "a", "\n", "▁a"]
    values = {
        "general.architecture": "phi3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, CONTROL, CONTROL, *[NORMAL] * 4],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, 0.0, -3.0, -2.0, -4.0, -1.0],
    }
    phi3 = build_tokenizer(Metadata(values))
    assert phi3.encode("<|end|>\n<s>\na").ids == [4, 1, 5, 7, 6]
    other = build_tokenizer(Metadata(values | {"general.architecture": "llama"}))
    assert other.encode("<|end|>\n<s>").ids == [4, 5, 7, 1]


def test_a_byte_that_is_no_token_falls_back_and_an_unknown_one_without_bytes_is_unk() -> None:
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "▁", "a", "<0xC3>", "<0xA9>"],
        "tokenizer.ggml.token_type": [UNKNOWN, NORMAL, NORMAL, BYTE, BYTE],
        "tokenizer.ggml.scores": [0.0, -1.0, -2.0, 0.0, 0.0],
    }
    tokenizer = build_tokenizer(Metadata(values))
    assert tokenizer.encode("aé").tokens == ["▁", "a", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("aé").ids) == "aé"
    assert tokenizer.encode("z").tokens == ["▁", "<unk>"]


def test_an_answer_ends_where_llama_cpp_ends_it() -> None:
    """What the metadata names, and control tokens that are known by their text."""
    ends = ["<|end|>", "<|eot_id|>", "<|im_end|>", "<end_of_turn>"]
    tokens = ["<|endoftext|>", *ends, "<|im_start|>", "a", "<|eom_id|>"]
    kinds = [CONTROL] * 6 + [NORMAL] * 2
    values = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    assert end_ids(Metadata(values)) == [1, 2, 3, 4]
    named = {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 1, "tokenizer.ggml.eom_token_id": 7}
    assert end_ids(Metadata(values | named)) == [0, 1, 2, 3, 4, 7]
    values["tokenizer.ggml.token_type"] = [CONTROL, USER_DEFINED, *[NORMAL] * 6]
    assert end_ids(Metadata(values)) == [1]


TEXT = "I'M a12345 naïve ²x?!\n\n  end\t."
SPLITS = {
    ("gpt-2", "phi-2", "olmo"): "I|'|M| a|12345| naïve| ²|x|?!|\n\n | end|\t|.",
    ("smollm", "refact", "starcoder"): "I|'|M| a|1|2|3|4|5| naïve| |²|x|?!|\n\n | end|\t|.",
    ("llama-bpe", "smaug-bpe", "dbrx"): "I|'M| a|123|45| naïve| |²|x|?!\n\n| | end|\t|.",
    ("qwen2", "stablelm2"): "I|'M| a|1|2|3|4|5| naïve| |²|x|?!\n\n| | end|\t|.",
    ("gpt-4o",): "I'M| a|123|45| naïve| |²|x|?!\n\n| | end|\t|.",
}


@pytest.mark.parametrize(("names", "expected"), SPLITS.items(), ids=lambda each: each[0])
def test_pre_tokenizers_cut_as_their_families_do(names: tuple[str, ...], expected: str) -> None:
    for name in names:
        pieces = PRE_TOKENIZERS[name].build().pre_tokenize_str(TEXT)
        assert "|".join(TEXT[start:end] for _, (start, end) in pieces) == expected


def test_every_pre_tokenizer_is_in_the_table_above() -> None:
    assert {name for names in SPLITS for name in names} == set(PRE_TOKENIZERS)


def test_tokenizer_equals_the_one_it_was_made_from(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    built, own = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path).tokenizer, tiny_checkpoint.tokenizer()
    for text in ("The ferry left at 6.10", " two  spaces\n\n", "naïve — 漢字 🎈", "<s>user: hi</s>"):
        assert built.encode(text).ids == own.encode(text).ids


def test_an_unknown_pre_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", pre="klingon")
    with pytest.raises(ExportError, match="'klingon'; known are"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)


def test_an_unknown_tokenizer_model_is_refused_by_name(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", tokenizer_model="bert")
    with pytest.raises(ExportError, match="kind 'bert'"):
        open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path)
