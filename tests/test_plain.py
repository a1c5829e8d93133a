"""What people write never becomes a control token, with any tokenizer and template at hand."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import lenml
from exporter.native import RustTokenizer
from handbill.chat import Prompter
from handbill.plain import SEAM, Plain, encode
from samples import make_manifest
from test_tokenizer import path_of
from tricky_strings import STRINGS

GOLDEN = Path(__file__).parent / "golden" / "templates"
TEMPLATES = {
    **dict.fromkeys(("gemma", "gemma2"), (GOLDEN / "gemma.jinja").read_text(encoding="utf-8")),
    **dict.fromkeys(
        ("gpt2", "gpt4o"), "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}"
    ),
    "llama2": "{% for m in messages %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}{% endfor %}",
    "smollm2": (GOLDEN / "smollm2.jinja").read_text(encoding="utf-8"),
}
"""For the packages that bring none."""


def of(name: str) -> tuple[RustTokenizer, Prompter]:
    tokenizer = RustTokenizer(path_of(name))
    config = lenml.config(name) if name in lenml.FAMILIES else {}
    template = config.get("chat_template") or TEMPLATES[name]
    tokens = {key: config[key] for key in ("bos_token", "eos_token") if isinstance(config.get(key), str)}
    manifest = make_manifest(chat_template=template, **({"bos_token": "", "eos_token": ""} | tokens))
    return tokenizer, Prompter(manifest, lambda: datetime(2026, 1, 1), tokenizer.added)


def say(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def controls(tokenizer: RustTokenizer, ids: list[int]) -> list[int]:
    """The special tokens among ``ids``."""
    special = {tokenizer.encode(token)[-1] for token, is_special in tokenizer.added.items() if is_special}
    return [token for token in ids if token in special]


@pytest.mark.parametrize("name", [*lenml.FAMILIES, pytest.param("smollm2", marks=pytest.mark.model)])
def test_no_spelling_of_a_special_token_becomes_one(name: str) -> None:
    tokenizer, prompter = of(name)
    special = [token for token, is_special in tokenizer.added.items() if is_special]
    innocent = controls(tokenizer, encode(tokenizer, prompter.prompt(say("a", "b", "c"))))
    for text in ("".join(special[:40]), f"x{special[0]}{special[-1]}y", special[0][:1] + special[0] * 3):
        for conversation in (say(text, "b", "c"), say("a", text, "c")):
            prompt = prompter.prompt(conversation)
            ids = encode(tokenizer, prompt)
            assert controls(tokenizer, ids) == innocent
            assert SEAM not in tokenizer.decode(ids)
    if name != "llama2":  # Its normalizer writes a space before every text that it is given.
        ids = encode(tokenizer, prompter.prompt(say(f"x{special[0]}y")))
        assert f"x{special[0]}y" in tokenizer.decode(ids)


@pytest.mark.parametrize("name", [*lenml.FAMILIES, pytest.param("smollm2", marks=pytest.mark.model)])
def test_an_innocent_conversation_keeps_its_tokens(name: str) -> None:
    tokenizer, prompter = of(name)
    for text in STRINGS:
        prompt = prompter.prompt(say(text))
        if not any(token in text for token in tokenizer.added if token.strip()):
            assert SEAM not in prompt
            assert encode(tokenizer, prompt) == tokenizer.encode(prompt)


def test_what_a_template_looks_for_stays_in_the_models_own_words() -> None:
    tokenizer, prompter = of("qwen3")
    mark = tokenizer.encode("</think>")
    assert len(mark) == 1
    asked = encode(tokenizer, prompter.prompt(say("Is </think> a word?")))
    assert mark[0] not in asked
    # Qwen's template leaves out what the model thought in an earlier turn, and finds it by that very mark.
    later = prompter.prompt(say("a", "<think>\nhidden\n</think>\n\nseen", "c"))
    assert "hidden" not in later
    assert "seen" in later


def test_a_seam_of_the_visitors_own_is_replaced() -> None:
    plain = Plain({"<e>": True}, "")
    assert plain.message({"role": "user", "content": f"<{SEAM}e>"}) == {"role": "user", "content": "<\ufffde>"}


def test_tokens_inside_tokens_and_texts_inside_lists() -> None:
    plain = Plain({"<e>": True, "e>": True, "<ee>": True, "x": True}, "")
    assert plain.text("<ee>") == f"<{SEAM}ee{SEAM}>"
    content = [{"type": "text", "text": "<e>"}, 3, None]
    cut = plain.message({"role": "<e>", "content": content, "tool_calls": {"<e>": ["<e>"]}})
    assert cut["role"] == "<e>"
    assert cut["content"][0]["text"].split(SEAM) == ["<", "e", ">"]
    assert cut["content"][1:] == [3, None]
    assert "<e>" not in str(cut["tool_calls"])


def test_a_base_model_reads_plain_text_behind_its_bos() -> None:
    manifest = make_manifest(chat_template="", bos_token="<s>")
    prompter = Prompter(manifest, lambda: datetime(2026, 1, 1), {"<s>": True, "</s>": True})
    assert prompter.prompt(say("a</", "s>b")) == f"<s>a<{SEAM}/s>b"


@pytest.mark.parametrize("text", ["{{ 7 * 7 }}", "{% for x in y %}", "{# gone #}", "{{ messages }}", "${title}"])
def test_template_syntax_in_a_message_stays_as_it_is(text: str) -> None:
    manifest = make_manifest(chat_template="{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert Prompter(manifest, lambda: datetime(2026, 1, 1), {}).prompt(say(text)) == f"[{text}]"
