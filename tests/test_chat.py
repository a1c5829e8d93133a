"""Chat templates against transformers' ``apply_chat_template``, byte for byte, and what happens to broken ones."""

from __future__ import annotations

import datetime as real_datetime
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

import lenml
import real_model
from handbill.chat import ChatError, ChatTemplate, Prompter, completion_prompt, is_base
from samples import make_manifest

GOLDEN = Path(__file__).parent / "golden" / "templates"
NOW = datetime(2026, 2, 3, 4, 5, 6)


def clock() -> datetime:
    return NOW


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.jinja").read_text(encoding="utf-8")


def family(name: str) -> tuple[str, dict[str, str]]:
    """(template, special tokens) of a family."""
    if name in lenml.FAMILIES and name != "gemma":  # its package brings no template
        config = lenml.config(name)
        tokens = {key: config[key] for key in ("bos_token", "eos_token") if config[key]}
        return config["chat_template"], tokens
    tokens = {
        "smollm2": ("<|im_start|>", "<|im_end|>"),
        "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
        "gemma": ("<bos>", "<eos>"),
        "phi3": ("<s>", "<|endoftext|>"),
        "phi3_5": ("<s>", "<|endoftext|>"),
    }[name]
    return golden(name), dict(zip(("bos_token", "eos_token"), tokens, strict=True))


def by_transformers(template: str, tokens: dict[str, str], messages: list[Any], **variables: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")), **tokens)
    text = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template, **variables)
    assert isinstance(text, str)
    return text


@pytest.fixture(autouse=True)
def _same_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks the system for the date; give it ours."""

    class Fixed(real_datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Fixed:
            assert tz is None
            return cls(*NOW.timetuple()[:6])

    monkeypatch.setattr(chat_template_utils, "datetime", Fixed)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER = turn("user", "  What's <b>2 & 2</b>? “Čeština” 😀\n\n")
ASSISTANT = turn("assistant", "<think>\nhm\n</think>\n\nIt's 4.  ")
CONVERSATIONS = {
    "one": [USER],
    "turns": [USER, ASSISTANT, turn("user", "And {{ bos_token }} {% raw %}?")],
    "system": [turn("system", "Be brief.\n"), USER],
    "system turns": [turn("system", "Be “brief”."), USER, ASSISTANT, turn("user", "")],
    "ends with the answer": [USER, ASSISTANT],
}
FAMILIES = ["smollm2", "llama3", "llama3_2", "gemma", "gemma3", "phi3", "phi3_5", "qwen2_5", "qwen3"]


@pytest.mark.parametrize("prompted", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_renders_as_in_transformers(name: str, conversation: str, prompted: bool) -> None:
    template, tokens = family(name)
    messages = CONVERSATIONS[conversation]
    ours = ChatTemplate(template, tokens, clock)
    if name == "gemma" and conversation.startswith("system"):
        with pytest.raises(ChatError, match="System role not supported"):
            ours.render(messages, add_generation_prompt=prompted)
        return
    want = by_transformers(template, tokens, messages, add_generation_prompt=prompted)
    assert ours.render(messages, add_generation_prompt=prompted) == want
    assert "It's 4." in want or len(messages) < 3


def test_llama_3_2_writes_todays_date() -> None:
    template, tokens = family("llama3_2")
    assert "Today Date: 03 Feb 2026" in ChatTemplate(template, tokens, clock).render([USER])


@pytest.mark.parametrize("name", ["llama3_2", "qwen2_5", "qwen3"])
def test_tools_render_as_in_transformers(name: str) -> None:
    template, tokens = family(name)
    tool = {"type": "function", "function": {"name": "añadir", "description": "<b>'a' & \"b\"</b>", "parameters": {}}}
    want = by_transformers(template, tokens, [USER], tools=[tool], add_generation_prompt=True)
    assert ChatTemplate(template, tokens, clock).render([USER], tools=[tool]) == want
    assert "añadir" in want


def test_a_variable_reaches_the_template() -> None:
    template, tokens = family("qwen3")
    text = ChatTemplate(template, tokens, clock).render([USER], enable_thinking=False)
    assert text.endswith("<think>\n\n</think>\n\n")
    want = by_transformers(template, tokens, [USER], enable_thinking=False, add_generation_prompt=True)
    assert text == want


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n    {{ m.content }}\n  {% endif %}\n{% endfor %}\n",
        "{{ messages | tojson }}|{{ messages | tojson(indent=2) }}|{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
        "{{ messages | tojson(ensure_ascii=true) }}{{ [1, 2] | tojson(separators=(',', ':')) }}",
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ messages[0].content }}{% endgeneration %}{{ x }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ strftime_now('%d %B %Y %H:%M') }}{{ bos_token }}{{ unk_token }}{{ tools is none }}{{ documents is none }}",
        "{{ bos_token is defined }} {{ eos_token is defined }}",
        "{{ messages[0].missing }}{{ messages[0]['content'] | upper | replace('2', '3') }}",
        "{{ '<&>' }}{{ messages[0].content | e }}",
    ],
)
def test_what_the_environment_offers_is_what_transformers_offers(template: str) -> None:
    tokens = {"bos_token": "<s>"}
    want = by_transformers(template, tokens, [USER, ASSISTANT])
    assert ChatTemplate(template, {**tokens, "eos_token": ""}, clock).render([USER, ASSISTANT]) == want


def test_a_template_that_does_not_parse_says_where() -> None:
    with pytest.raises(ChatError, match=r"broken at line 2 .*; mend it"):
        ChatTemplate("{{ messages }}\n{% for x %}", {}, clock)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
        ("{{ missing.attribute }}", "refuses this conversation: 'missing' is undefined"),
        ("{{ messages[0].content + 1 }}", "fails on this conversation .TypeError"),
        ("{{ 1 // 0 }}", "fails on this conversation .ZeroDivisionError"),
        ("{{ undefined_thing | tojson }}", "fails on this conversation .TypeError"),
        ("{{ messages.append(1) }}", "refuses this conversation: access to attribute 'append'"),
        ("{{ ''.__class__.__mro__ }}", "refuses this conversation: access to attribute '__class__'"),
        ("{{ range(1000000000) }}", "fails on this conversation .OverflowError"),
        ("{% include 'x' %}", "fails on this conversation .TypeError: no loader"),
    ],
)
def test_a_template_that_fails_becomes_a_sentence(template: str, words: str) -> None:
    with pytest.raises(ChatError, match=words) as failure:
        ChatTemplate(template, {}, clock).render([USER])
    assert failure.value.kind == "template"


@pytest.mark.parametrize(("name", "takes"), [("smollm2", True), ("gemma", False), ("phi3", False), ("gemma3", True)])
def test_whether_a_system_message_reaches_the_model(name: str, takes: bool) -> None:
    template, tokens = family(name)
    assert ChatTemplate(template, tokens, clock).takes_system() is takes


def test_a_model_without_a_template_continues_text() -> None:
    manifest = make_manifest(chat_template=" \n", bos_token="<bos>")
    prompter = Prompter(manifest, clock, {})
    assert is_base(manifest) and prompter.is_base and not prompter.takes_system
    assert prompter.prompt([turn("user", "Once upon"), turn("assistant", " a time")]) == "<bos>Once upon a time"
    assert completion_prompt([turn("user", " x")], "") == " x"
    with pytest.raises(ChatError, match="something else"):
        completion_prompt([{"role": "user", "content": [{"type": "image"}]}], "")


def test_a_prompter_uses_the_manifests_template_and_tokens() -> None:
    manifest = make_manifest(chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", bos_token="<s>")
    prompter = Prompter(manifest, clock, {})
    assert not prompter.is_base and prompter.takes_system
    assert prompter.prompt([turn("user", "hi")]) == "<s>hi" + manifest.eos_token
    with pytest.raises(ChatError, match="no message"):
        prompter.prompt([])


@pytest.mark.model
def test_the_export_carries_smollm2s_template() -> None:
    assert real_model.manifest().chat_template == golden("smollm2")
