"""Build tokenizer.json from a GGUF's metadata.

transformers' own conversion gets SmolLM2 wrong (eos, a BOS-adding post-processor, no digit split), because it does not
look at ``tokenizer.ggml.pre``. That key names the pre-tokenizer; one that is not listed here is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from exporter.errors import ExportError

# ggml's token types (llama.cpp, llama_token_type).
CONTROL, USER_DEFINED = 3, 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _by_regex(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _by_digits() -> Any:
    # An isolated Split on \p{N} is what Digits(individual_digits=True) does, and the browser's library agrees on it.
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "smollm": _by_digits,
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama-bpe": lambda: _by_regex(_LLAMA3),
    "qwen2": lambda: _by_regex(_QWEN2),
}


def build_tokenizer(file: Any) -> Tokenizer:
    """The Rust tokenizer that ``file`` (a GGUFFile) describes; no post-processor, since templates write BOS themselves.

    Raises ExportError for a tokenizer model or pre-tokenizer that is not known.
    """
    kind = file.value("tokenizer.ggml.model")
    pre = file.value("tokenizer.ggml.pre", "")
    if kind != "gpt2":
        raise ExportError(
            f"{file.path.name} has a tokenizer of kind {kind!r}; only byte-level BPE ('gpt2') can be built from a GGUF "
            "today. Pass the original checkpoint's folder instead."
        )
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise ExportError(f"{file.path.name} names the pre-tokenizer {pre!r}; known are {known}.")
    tokens = file.value("tokenizer.ggml.tokens")
    kinds = file.value("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in file.value("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    added: list[tuple[str, int]] = [
        (token, kinds[index]) for index, token in enumerate(tokens) if kinds[index] in (CONTROL, USER_DEFINED)
    ]
    for token, token_kind in added:
        tokenizer.add_tokens([AddedToken(token, special=token_kind == CONTROL, normalized=False)])
    return tokenizer
