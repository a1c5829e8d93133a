"""Keep what people write from becoming control tokens.

A chat template writes a conversation as one text, and the tokenizer recognises ``<|im_end|>`` wherever it stands: in
the template's own lines, but also in a message, which could so end its turn and begin one of the system. Here every
such spelling in a message gets a seam inside, and the prompt is cut at its seams before it is tokenized: ``<`` and
``|im_end|>`` are then read as the letters they are. A prompt without such a spelling has no seam and is tokenized as
transformers does it. (The alternative, tokenizing each message on its own, changes tokens at the borders of innocent
messages.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from handbill.session import Tokenizer

SEAM = "\ufdd0"
"""A noncharacter, which Unicode sets aside for a program's own use; in a message it is replaced by U+FFFD."""


class Plain:
    """Makes messages plain text for one model.

    ``added`` is ``Tokenizer.added``: the tokens recognised wherever they are spelt out, and whether each is special.
    Those that are not special (Gemma's runs of spaces, Qwen's ``<think>``) are control tokens if ``template`` writes or
    looks for them. A model's own earlier words keep these, because a template reads them to leave reasoning out.
    A token of a single character cannot be cut; no known tokenizer has a control token so short.
    """

    def __init__(self, added: Mapping[str, bool], template: str) -> None:
        named = [token for token in added if token.strip() and token in template]
        special = [token for token, is_special in added.items() if is_special]
        self._special = _pattern(special)
        self._control = _pattern([*special, *named])

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """``message`` with a seam in every control token that its texts spell out; its role stays."""
        pattern = self._special if message.get("role") == "assistant" else self._control
        return {key: value if key == "role" else _cut(value, pattern) for key, value in message.items()}

    def text(self, text: str) -> str:
        """``text`` of which nothing is the template's."""
        return _cut_text(text, self._control)


def encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of ``prompt``, cut at its seams."""
    return [token for part in prompt.split(SEAM) if part for token in tokenizer.encode(part)]


def _pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Any of ``tokens``, the longest first, as tokenizers match them."""
    long = sorted({token for token in tokens if len(token) > 1}, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, long))) if long else None


def _cut(value: Any, pattern: re.Pattern[str] | None) -> Any:
    """``value`` (text, or lists and mappings with texts inside) with its texts cut."""
    if isinstance(value, str):
        return _cut_text(value, pattern)
    if isinstance(value, Mapping):
        return {_cut(key, pattern): _cut(item, pattern) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(item, pattern) for item in value]
    return value


def _cut_text(text: str, pattern: re.Pattern[str] | None) -> str:
    text = text.replace(SEAM, "\ufffd")
    if pattern is None:
        return text
    parts, start = [], 0
    # Onward from the second character of each find: what is left of it may spell another token.
    while found := pattern.search(text, start):
        cut = found.start() + 1
        parts.append(text[start:cut])
        start = cut
    return SEAM.join([*parts, text[start:]])
