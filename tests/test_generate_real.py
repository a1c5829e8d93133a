"""The generate loop over the real model: the KV cache's reuse, stops and sampling."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np
import pytest

import real_model
from asking import ask, ticking
from exporter.native import NativeSession, RustTokenizer
from handbill.chat import Prompter
from handbill.events import Done, Event, Piece
from handbill.generate import Generator
from handbill.sampling import Settings

Real = tuple[NativeSession, RustTokenizer, Prompter, list[int]]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """The real model in float32, where chunks do not matter (see real_model.exact_session)."""
    manifest = real_model.manifest()
    session = real_model.exact_session(tmp_path_factory.mktemp("exact"), context=512)
    tokenizer = RustTokenizer.open(real_model.FOLDER)
    yield session, tokenizer, Prompter(manifest, datetime.now, tokenizer.added), manifest.eos_ids
    session.close()


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def anew(session: NativeSession, ids: list[int], eos_ids: Sequence[int], most: int) -> list[int]:
    """Greedy tokens with the whole prompt prefilled again for every one of them, from full logits."""
    answer: list[int] = []
    while len(answer) < most:
        session.rewind(0)
        token = int(np.argmax(session.logits([*ids, *answer])[0]))
        if token in eos_ids:
            break
        answer.append(token)
    session.rewind(0)
    return answer


@pytest.mark.model
def test_the_real_models_answer_is_that_of_computing_everything_anew(real: Real) -> None:
    session, tokenizer, prompter, eos_ids = real
    prompt = prompter.prompt([user("What is the capital of France?")])
    want = anew(session, tokenizer.encode(prompt), eos_ids, 8)
    generate = Generator(session, tokenizer, eos_ids, ticking())
    text, done = ask(generate, prompt, Settings(temperature=0, max_tokens=8))
    assert done.ids == want
    assert text == tokenizer.decode(done.ids)
    assert "Paris" in text


@pytest.mark.model
def test_the_real_models_second_turn_reuses_the_first(real: Real) -> None:
    session, tokenizer, prompter, eos_ids = real
    session.rewind(0)
    generate = Generator(session, tokenizer, eos_ids, ticking())
    greedy = Settings(temperature=0, max_tokens=8)
    first = [user("What is the capital of France?")]
    text, done = ask(generate, prompter.prompt(first), greedy)
    second = [*first, {"role": "assistant", "content": text}, user("And of Italy?")]
    prompt = prompter.prompt(second)
    _, turned = ask(generate, prompt, greedy)
    assert turned.reused_tokens >= done.prompt_tokens + done.tokens - 1
    fresh = Generator(session, tokenizer, eos_ids, ticking())
    session.rewind(0)
    assert ask(fresh, prompt, greedy)[1].ids == turned.ids


@pytest.mark.model
def test_the_shipped_graph_can_be_stopped_and_sampled() -> None:
    manifest = real_model.manifest()
    session, tokenizer = NativeSession.open(real_model.FOLDER, context=512), RustTokenizer.open(real_model.FOLDER)
    generate = Generator(session, tokenizer, manifest.eos_ids, ticking())
    prompt = Prompter(manifest, datetime.now, tokenizer.added).prompt([user("Tell me a story about a dragon.")])

    async def three_pieces() -> Event:
        pieces = 0
        async for event in generate.answer(prompt, Settings(temperature=0)):
            pieces += isinstance(event, Piece)
            if pieces == 3:
                generate.stop()
        return event

    done = asyncio.run(three_pieces())
    assert isinstance(done, Done)
    assert done.reason == "stopped" and done.tokens <= 5
    assert session.length == len(generate.cached) == done.prompt_tokens + done.tokens - 1
    sampled = Settings(temperature=0.9, seed=11, max_tokens=8)
    assert ask(generate, prompt, sampled)[1].ids == ask(generate, prompt, sampled)[1].ids
    session.close()
