"""Build tokenizer.json from a GGUF's metadata.

transformers' own conversion gets SmolLM2 wrong (eos, a BOS-adding post-processor, no digit split), because it does not
look at ``tokenizer.ggml.pre``. Two kinds are known (``tokenizer.ggml.model``): ``gpt2``, byte-level BPE with merges and
a pre-tokenizer by name, and ``llama``, SentencePiece's BPE, which has scores in place of merges. Others are refused by
name.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from exporter.errors import ExportError
from exporter.gguf_pre_tokenizers import PRE_TOKENIZERS

# ggml's token types (llama.cpp, llama_token_type).
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
_ENDS = frozenset({"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<EOT>", "_<EOT>"})
"""llama-vocab.cpp's, but for ``<|endoftext|>``, which ends a document: it counts where the metadata names it."""

_SPACE = "\u2581"
"""What SentencePiece writes for a space."""


def build_tokenizer(file: Any) -> Tokenizer:
    """The Rust tokenizer that ``file`` (a GGUFFile) describes; no post-processor, since templates write BOS themselves.

    Raises ExportError for a tokenizer model or pre-tokenizer that is not known.
    """
    kind = file.value("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(file)
    elif kind == "llama":
        tokenizer = _sentencepiece(file)
    else:
        raise ExportError(
            f"{file.path.name} has a tokenizer of kind {kind!r}; byte-level BPE ('gpt2') and SentencePiece's BPE "
            "('llama') can be built from a GGUF. Pass the original checkpoint's folder instead."
        )
    kinds = file.value("tokenizer.ggml.token_type")
    # Phi-3's own tokenizer.json lets its control tokens, all but these, take the white space after them.
    strips = kind == "llama" and file.value("general.architecture") == "phi3"
    keeps = {"<unk>", "<s>", "<|endoftext|>"}
    tokenizer.add_tokens(
        [
            AddedToken(
                token,
                special=kinds[index] != USER_DEFINED,
                normalized=False,
                rstrip=strips and token not in keeps and kinds[index] == CONTROL,
            )
            for index, token in enumerate(_tokens(file))
            if kinds[index] in (CONTROL, USER_DEFINED) or (kinds[index] == UNKNOWN and kind == "llama")
        ]
    )
    return tokenizer


def end_ids(file: Any) -> list[int]:
    """The tokens that end an answer: those that the metadata names, and those that llama.cpp knows by their text.

    A chat's end of turn is often there under its text alone (Phi-3's ``<|end|>``: its eos is ``<|endoftext|>``).
    """
    kinds = file.value("tokenizer.ggml.token_type")
    named = [file.value(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    by_text = [
        index
        for index, token in enumerate(file.value("tokenizer.ggml.tokens"))
        if token in _ENDS and kinds[index] in (CONTROL, USER_DEFINED)
    ]
    return sorted({*by_text, *(int(index) for index in named if index is not None)})


def adds_bos(file: Any) -> bool:
    """Whether BOS goes before a text: as the metadata says, else as llama.cpp does by the kind of tokenizer."""
    by_kind = file.value("tokenizer.ggml.model") == "llama" or file.value("tokenizer.ggml.pre") == "llama-bpe"
    return bool(file.value("tokenizer.ggml.add_bos_token", by_kind))


def _tokens(file: Any) -> list[str]:
    """The vocabulary as the tokenizer libraries write it: llama.cpp's converter put plain spaces in some pieces."""
    tokens: list[str] = file.value("tokenizer.ggml.tokens")
    if file.value("tokenizer.ggml.model") != "llama":
        return tokens
    return [token.replace(" ", _SPACE) for token in tokens]


def _byte_level(file: Any) -> Tokenizer:
    pre = file.value("tokenizer.ggml.pre", "")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise ExportError(f"{file.path.name} names the pre-tokenizer {pre!r}; known are {known}.")
    split = PRE_TOKENIZERS[pre]
    merges = [tuple(merge.split(" ", 1)) for merge in file.value("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(_tokens(file))}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False, ignore_merges=split.ignore_merges
        )
    )
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: Any) -> Tokenizer:
    tokens, kinds = _tokens(file), file.value("tokenizer.ggml.token_type")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = file.value(
        "tokenizer.ggml.unknown_token_id", next((i for i, k in enumerate(kinds) if k == UNKNOWN), None)
    )
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(tokens, kinds, file.value("tokenizer.ggml.scores")),
            unk_token=None if unknown is None else tokens[int(unknown)],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", _SPACE)
    decoder = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.value("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        decoder.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(decoder)
    return tokenizer


def _merges(tokens: list[str], kinds: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose union has the best score: each way to split a token, best score first.

    A user-defined token is found before any merge. Those that are one repeated character (white space, in Gemma) can
    only come about by merges, since the spaces in a text are replaced before; so they come first, the longest foremost.
    """
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ranked = [i for i, kind in enumerate(kinds) if kind not in (UNKNOWN, CONTROL, USER_DEFINED) and len(tokens[i]) > 1]
    ranked.sort(key=lambda index: -scores[index])  # stable: equal scores in the order of the vocabulary
    runs = [
        i for i, kind in enumerate(kinds) if kind == USER_DEFINED and len(tokens[i]) > 1 and len(set(tokens[i])) == 1
    ]
    runs.sort(key=lambda index: -len(tokens[index]))
    merges: list[tuple[str, str]] = []
    for index in (*runs, *ranked):
        token = tokens[index]
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
