"""Greedy answers of the shipped graph, held against the source's.

The graph answers by itself, token by token over its KV cache, as a page would. The source then reads each answer once
and says what it would have said next after every token: as long as the two agree, that is its own greedy answer too, so
an answer that agrees to its end is identical, and one pass over it replaces 64 steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from exporter.errors import ExportError
from exporter.native import NativeSession
from handbill.chat import ChatError, ChatTemplate
from handbill.manifest import Greedy, KVLayout

TOKENS = 64

PROMPTS = (
    "What is the capital of France?",
    "Explain to a child why leaves are green.",
    "Write a thank-you note to a neighbour.",
    "List three ways to save water.",
    "What is the difference between weather and climate?",
    "Write a Python function that reverses a string.",
    "A shop sells pens at 3 for 2 euros. What do 12 pens cost?",
    "Tell a very short story about a lighthouse.",
)

_DATE = datetime(2025, 1, 1)
"""For templates that write the date: the same export has to give the same certificate on another day."""


def texts(template: str, special_tokens: dict[str, str]) -> list[str]:
    """What a page asks for each of PROMPTS: through the chat ``template``, or behind BOS where there is none.

    Raises ExportError for a template that fails.
    """
    if not template:
        return [special_tokens["bos_token"] + prompt for prompt in PROMPTS]
    try:
        chat = ChatTemplate(template, special_tokens, lambda: _DATE)
        return [chat.render([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    except ChatError as error:
        raise ExportError(str(error)) from error


def prompts(tokenizer: Tokenizer, template: str, special_tokens: dict[str, str]) -> list[list[int]]:
    """Token ids of ``texts``."""
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts(template, special_tokens)]


def answers(
    graph: Path, kv: KVLayout, asked: Sequence[Sequence[int]], eos_ids: Sequence[int], report: Callable[[int], None]
) -> list[list[int]]:
    """The likeliest token after the likeliest token, up to TOKENS of them or one of ``eos_ids``, which is kept."""
    longest = max(map(len, asked))
    session = NativeSession(graph, kv, longest + TOKENS, chunk=longest)
    found = []
    for prompt in asked:
        session.rewind(0)
        answer = [int(session.logits(prompt)[0].argmax())]
        while len(answer) < TOKENS and answer[-1] not in eos_ids:
            answer.append(int(session.logits(answer[-1:])[0].argmax()))
        found.append(answer)
        report(1)
    session.close()
    return found


@torch.no_grad()
def compare(model: Any, asked: Sequence[Sequence[int]], said: Sequence[Sequence[int]]) -> Greedy:
    """How many tokens of the answers ``said`` the eager ``model`` would have said as well."""
    agreed = identical = 0
    for prompt, answer in zip(asked, said, strict=True):
        ids = torch.tensor([[*prompt, *answer[:-1]]])
        wanted = model(ids, use_cache=False).logits[0, len(prompt) - 1 :].argmax(-1).tolist()
        same = sum(a == b for a, b in zip(wanted, answer, strict=True))
        agreed += same
        identical += same == len(answer)
    return Greedy(len(asked), TOKENS, sum(map(len, said)), agreed, identical)
