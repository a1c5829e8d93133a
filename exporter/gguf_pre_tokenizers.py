"""How a text is cut before byte-level BPE, by the name in a GGUF's ``tokenizer.ggml.pre``.

The names are llama.cpp's (convert_hf_to_gguf.py gives them, llama-vocab.cpp reads them); the patterns are those of the
families' own tokenizer.json files, in the syntax that both the Rust library and the browser's read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """``pattern`` cuts a text ("" for GPT-2's own, which the library knows), ``digits`` every digit before that.

    ``nfc`` normalizes first; with ``ignore_merges`` a piece that is in the vocabulary is not taken apart.
    """

    pattern: str = ""
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False

    def build(self) -> Any:
        """The pre-tokenizer of the Rust library."""
        if self.pattern:
            split = pre_tokenizers.Split(Regex(self.pattern), behavior="isolated")
            return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        by_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if not self.digits:
            return by_words
        # As Digits(individual_digits=True) does; the browser's library agrees on this form of it.
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"), by_words])


_GPT2 = PreTokenizer()
_STARCODER = PreTokenizer(digits=True)
_LLAMA_3 = PreTokenizer(_LLAMA3, ignore_merges=True)
_CL100K = PreTokenizer(_LLAMA3)

PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "olmo": PreTokenizer(nfc=True),
    "smollm": _STARCODER,
    "refact": _STARCODER,  # Granite 3
    "starcoder": _STARCODER,
    "llama-bpe": _LLAMA_3,
    "smaug-bpe": _LLAMA_3,  # SmolLM3
    "dbrx": _CL100K,  # OLMo 2
    "qwen2": PreTokenizer(_QWEN2, nfc=True),
    "stablelm2": PreTokenizer(_QWEN2, nfc=True),
    "gpt-4o": PreTokenizer(_GPT4O),  # Phi-4-mini
}
