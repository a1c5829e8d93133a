"""The generate loop on a fake model: reuse of the KV cache, chunks, stops, ends and failures."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asking import GREEDY, ask, collect, generator, reference
from fake_model import EOS, FakeSession, FakeTokenizer, says
from handbill.events import Done, Event, Piece, Prefill
from handbill.generate import Generator, TooLongError
from handbill.sampling import Settings
from handbill.session import SessionError


def test_an_answer_comes_in_events() -> None:
    session = FakeSession(says("Grüß!", "0123456789"), chunk=4)
    events = asyncio.run(collect(generator(session), "0123456789", GREEDY))
    assert [event.done for event in events if isinstance(event, Prefill)] == [0, 4, 8, 10]
    assert [event.text for event in events if isinstance(event, Piece)] == ["G", "r", "ü", "ß", "!"]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.reason, done.prompt_tokens, done.reused_tokens, done.tokens) == ("eos", 10, 0, 7)
    assert bytes(done.ids).decode() == "Grüß!"
    assert session.steps == [(4, 1), (4, 1), (2, 1)] + [(1, 1)] * 7


def test_events_are_the_protocols_messages() -> None:
    events = asyncio.run(collect(generator(FakeSession(says("x", "ab"))), "ab", GREEDY))
    messages = [{"kind": event.kind, **dataclasses.asdict(event)} for event in events]
    assert [message["kind"] for message in messages] == ["progress", "progress", "piece", "done"]
    assert set(messages[0]) == {"kind", "stage", "done", "total", "unit", "rate", "seconds_left"}
    assert (messages[0]["stage"], messages[0]["unit"]) == ("prefill", "tokens")
    assert set(messages[3]) == {
        *("kind", "reason", "prompt_tokens", "reused_tokens", "tokens", "first_token_seconds", "tokens_per_second"),
        "ids",
    }


def test_progress_has_a_rate_and_the_time_left() -> None:
    events = asyncio.run(collect(generator(FakeSession(chunk=10)), "x" * 40, GREEDY))
    progress = [event for event in events if isinstance(event, Prefill)]
    assert progress[0] == Prefill(0, 40, None, None)
    # One look at the clock per chunk: ten tokens a second.
    assert progress[2] == Prefill(20, 40, 10.0, 2.0)
    assert progress[4] == Prefill(40, 40, 10.0, 0.0)


def test_times_are_the_clocks() -> None:
    _, done = ask(generator(FakeSession(says("abcde", "x" * 8), chunk=4)), "x" * 8)
    # Looks at the clock: start, prefill's start, two chunks, then one a token.
    assert done.first_token_seconds == 4.0
    assert done.tokens_per_second == 1.0
    _, done = ask(generator(FakeSession()), "x", Settings(temperature=0, max_tokens=5))
    assert (done.reason, done.tokens, done.tokens_per_second) == ("length", 5, 1.0)
    _, done = ask(generator(FakeSession(says("", "x"))), "x")
    assert (done.tokens, done.tokens_per_second, done.reason) == (0, 0.0, "eos")


def test_the_clock_may_stand_still() -> None:
    _, done = ask(Generator(FakeSession(says("abc", "x")), FakeTokenizer(), [EOS], lambda: 7.0), "x")
    assert (done.first_token_seconds, done.tokens_per_second) == (0.0, 0.0)


def test_a_second_turn_computes_only_what_is_new() -> None:
    session = FakeSession(says("fine.", "How are you?"))
    generate = generator(session)
    text, _ = ask(generate, "How are you?")
    assert text == "fine."
    session.steps.clear()
    _, done = ask(generate, "How are you?fine. And you?")
    assert done.reused_tokens == len("How are you?fine.")
    assert session.steps[0] == (len(" And you?"), 1)
    assert session.ids[: done.prompt_tokens] == list(b"How are you?fine. And you?")


def test_the_same_prompt_again_computes_one_token() -> None:
    session = FakeSession()
    generate = generator(session)
    first = ask(generate, "x" * 40)
    session.steps.clear()
    again = ask(generate, "x" * 40)
    assert session.steps[0] == (1, 1)
    assert again[1].reused_tokens == 39
    assert again[1].ids == first[1].ids


def test_an_edited_prompt_goes_back_to_the_common_prefix() -> None:
    session = FakeSession()
    generate = generator(session)
    ask(generate, "the same beginning, one end")
    _, done = ask(generate, "the same beginning, another")
    assert done.reused_tokens == len("the same beginning, ")
    assert done.ids == reference("the same beginning, another", GREEDY)


def test_another_adapter_reads_the_conversation_again() -> None:
    session = FakeSession()
    generate = generator(session)
    _, first = ask(generate, "x" * 40)
    asyncio.run(generate.adapt("legal"))
    assert generate.cached == () and session.ids == []
    _, again = ask(generate, "x" * 40)
    assert (again.reused_tokens, again.ids) == (0, first.ids)


def test_an_adapter_that_cannot_be_had_leaves_the_cache() -> None:
    generate = generator(FakeSession())
    ask(generate, "x" * 40)
    with pytest.raises(SessionError, match="missing"):
        asyncio.run(generate.adapt("missing"))
    assert ask(generate, "x" * 40)[1].reused_tokens == 39


def test_no_adapter_changes_in_mid_answer() -> None:
    generate = generator(FakeSession())

    async def go() -> None:
        async for _ in generate.answer("x", GREEDY):
            with pytest.raises(RuntimeError, match="still being written"):
                await generate.adapt("legal")

    asyncio.run(go())


PROMPTS = st.lists(st.text(alphabet="ab", min_size=1, max_size=40), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(PROMPTS, st.integers(1, 9), st.sampled_from([0.0, 1.0]), st.sampled_from([1.0, 1.3]))
def test_whatever_was_asked_before_the_answer_is_the_same(
    prompts: list[str], chunk: int, temperature: float, penalty: float
) -> None:
    session = FakeSession(chunk=chunk)
    generate = generator(session)
    sampling = Settings(temperature, seed=5, repetition_penalty=penalty, max_tokens=6)
    for prompt in prompts:
        _, done = ask(generate, prompt, sampling)
        assert done.ids == reference(prompt, sampling)
        assert list(generate.cached) == session.ids


@pytest.mark.parametrize("length", [501, 5000])
def test_a_prompt_past_the_context_is_refused_before_anything_is_computed(length: int) -> None:
    session = FakeSession(context=500)
    generate = generator(session)
    ask(generate, "hello")
    before, session.steps = list(session.ids), []
    with pytest.raises(TooLongError, match=f"{length:,} tokens long and this model holds 500 ") as failure:
        ask(generate, "x" * length)
    assert failure.value.kind == "too_long"
    assert session.steps == [] and session.ids == before


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        ask(generator(FakeSession()), "")


def test_the_answer_ends_where_the_context_does() -> None:
    session = FakeSession(context=30)
    _, done = ask(generator(session), "x" * 25, Settings(temperature=0, max_tokens=99))
    # Five more tokens fit, and the last one chosen needs no room.
    assert (done.reason, done.tokens, session.length) == ("context", 6, 30)
    _, done = ask(generator(FakeSession(context=30)), "x" * 30, GREEDY)
    assert (done.reason, done.tokens) == ("context", 1)


def test_max_tokens_ends_the_answer_and_its_last_token_is_not_computed() -> None:
    session = FakeSession()
    _, done = ask(generator(session), "hello", Settings(temperature=0, max_tokens=3))
    assert (done.reason, done.tokens, session.length) == ("length", 3, 5 + 2)


def test_a_stop_string_ends_the_answer_before_it() -> None:
    text, done = ask(
        generator(FakeSession(says("One. Two. STOP three", "x"))), "x", Settings(temperature=0, stop=("STOP",))
    )
    assert (text, done.reason) == ("One. Two. ", "stop")
    text, done = ask(generator(FakeSession(says("One. ST", "x"))), "x", Settings(temperature=0, stop=("STOP",)))
    assert (text, done.reason) == ("One. ST", "eos")


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    text, done = ask(generator(FakeSession(says("aé".encode()[:-1], "x"))), "x")
    assert (text, done.reason) == ("a\N{REPLACEMENT CHARACTER}", "eos")


@pytest.mark.parametrize("step", [0, 1, 3, 4, 6])
def test_a_stop_takes_hold_after_the_step_being_computed(step: int) -> None:
    session = FakeSession(chunk=4)
    generate = generator(session)
    session.on_step = lambda: generate.stop() if len(session.steps) == step + 1 else None
    prompt = "x" * 13
    text, done = ask(generate, prompt)
    assert done.reason == "stopped"
    assert len(session.steps) == step + 1
    assert done.tokens == max(0, step - 2)
    assert list(generate.cached) == session.ids
    session.on_step = lambda: None
    # What the stopped answer computed is not computed again.
    session.steps.clear()
    _, again = ask(generate, prompt)
    assert again.reused_tokens == min(4 * (step + 1), 12)
    assert again.ids == reference(prompt, GREEDY)
    assert text == FakeTokenizer().decode(again.ids[: done.tokens])


def test_a_stop_from_the_event_loop_is_heard_though_no_step_ever_waits() -> None:
    generate = generator(FakeSession())

    async def both() -> list[Event]:
        asyncio.get_running_loop().call_soon(generate.stop)
        return await collect(generate, "hello", GREEDY)

    done = asyncio.run(both())[-1]
    assert isinstance(done, Done) and done.reason == "stopped"


def test_an_old_stop_does_not_end_the_next_answer() -> None:
    generate = generator(FakeSession(says("yes", "x")))
    generate.stop()
    assert ask(generate, "x")[0] == "yes"


def test_two_answers_at_once_are_refused_and_the_first_goes_on() -> None:
    generate = generator(FakeSession(says("yes", "x")))

    async def both() -> list[Event]:
        first = generate.answer("x", GREEDY)
        events = [await anext(first)]
        with pytest.raises(RuntimeError, match="still being written"):
            await anext(generate.answer("y", GREEDY))
        return events + [event async for event in first]

    assert "".join(event.text for event in asyncio.run(both()) if isinstance(event, Piece)) == "yes"


def test_an_answer_nobody_listens_to_any_more_leaves_the_cache_known() -> None:
    session = FakeSession(chunk=4)
    generate = generator(session)

    async def leave(events: int) -> None:
        answer = generate.answer("x" * 10, GREEDY)
        for _ in range(events):
            await anext(answer)
        await answer.aclose()

    for events in range(1, 9):
        asyncio.run(leave(events))
        assert list(generate.cached) == session.ids
    assert ask(generate, "x" * 10)[1].ids == reference("x" * 10, GREEDY)


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_failed_step_is_passed_on_and_the_next_answer_starts_afresh(step: int) -> None:
    session = FakeSession(chunk=4)
    session.failures[step] = SessionError("device", "The device was lost.")
    generate = generator(session)
    with pytest.raises(SessionError, match="device was lost"):
        ask(generate, "x" * 10)
    assert generate.cached == ()
    _, done = ask(generate, "x" * 10)
    assert done.reused_tokens == 0
    assert done.ids == reference("x" * 10, GREEDY)


def test_after_forgetting_nothing_is_reused() -> None:
    session = FakeSession()
    shared = generator(session)
    first = ask(shared, "a secret of the first visitor")
    assert shared.cached
    shared.forget()
    assert (session.length, shared.cached) == (0, ())
    again = ask(shared, "a secret of the first visitor")
    assert again[1].reused_tokens == 0
    assert again[0] == first[0]


def test_an_answer_under_way_is_not_forgotten() -> None:
    shared = generator(FakeSession())

    async def run() -> None:
        events = shared.answer("hello", GREEDY)
        await anext(events)
        with pytest.raises(RuntimeError, match="still being written"):
            shared.forget()
        await events.aclose()

    asyncio.run(run())
    assert ask(shared, "hello")[0]


def test_a_megabyte_is_refused_before_it_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = generator(FakeSession(context=500))
    monkeypatch.setattr(FakeTokenizer, "encode", lambda *_: pytest.fail("it was tokenized"))
    with pytest.raises(TooLongError, match="1,000,000 characters long and this model holds 500 tokens"):
        ask(generate, "x" * 1_000_000)
