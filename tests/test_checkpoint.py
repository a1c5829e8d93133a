"""What an opened checkpoint says of prompts, and of what people wrote beside it: templates, BOS, ends, licences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

import tiny_checkpoint
import tiny_gguf
from exporter import greedy
from exporter.checkpoint import Checkpoint, licence_of, open_checkpoint
from exporter.errors import ExportError
from exporter.export import export
from exporter.native import RustTokenizer
from exporter.quantize import Choice
from handbill import plain
from handbill.chat import Prompter
from handbill.manifest import Manifest


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder), folder.parent)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), encoding="utf-8")


def gguf(tmp_path: Path, **more: Any) -> Checkpoint:
    tiny_gguf.write(tmp_path / "tiny.gguf", **more)
    return opened(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("folder_of_templates", [False, True])
def test_of_several_templates_the_default_is_taken(folder_of_templates: bool, tmp_path: Path) -> None:
    """A list in tokenizer_config.json, or files: one for tools or retrieval beside the one for conversations."""
    folder = tiny_checkpoint.save("llama", tmp_path / "tiny")
    (folder / "chat_template.jinja").unlink()
    if folder_of_templates:
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools", encoding="utf-8")
        (folder / "chat_template.jinja").write_text(tiny_checkpoint.TEMPLATE, encoding="utf-8")
    else:
        both = [{"name": "rag", "template": "rag"}, {"name": "default", "template": tiny_checkpoint.TEMPLATE}]
        change(folder / "tokenizer_config.json", chat_template=both)
    assert opened(folder).chat_template == tiny_checkpoint.TEMPLATE


def test_templates_without_a_default_are_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint.save("llama", tmp_path / "tiny")
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", chat_template=[{"name": "rag", "template": "rag"}])
    with pytest.raises(ExportError, match="tiny has chat templates named rag, and none named default"):
        opened(folder)


def with_bos(folder: Path) -> Path:
    """The tokenizer of ``folder`` puts <s> before a text, as Llama's does."""
    tokenizer = tiny_checkpoint.tokenizer().from_str(tiny_checkpoint.tokenizer().to_str())
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("adds", "template", "beginning"),
    [
        (True, None, "<s>"),
        (False, None, "<s>"),  # a page puts it there all the same
        (True, tiny_checkpoint.TEMPLATE, "<s>"),
        (False, tiny_checkpoint.TEMPLATE, ""),  # it begins each turn there, not the text
        (True, "{{ messages[0]['content'] }}", ""),
    ],
)
def test_what_is_measured_begins_as_a_pages_prompts_do(
    adds: bool, template: str | None, beginning: str, tmp_path: Path
) -> None:
    folder = tiny_checkpoint.save("llama", tmp_path / "tiny", chat=False)
    if adds:
        with_bos(folder)
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert opened(folder).beginning == beginning


@pytest.mark.parametrize(
    ("chat", "add", "bos", "beginning"),
    [
        (False, True, "<s>", "<s>"),
        (False, False, "", ""),
        (False, None, "", ""),  # byte-level BPE adds none unless it is said to
        (True, True, "<s>", "<s>"),
        (True, False, "<s>", ""),
    ],
)
def test_bos_of_a_gguf(chat: bool, add: bool | None, bos: str, beginning: str, tmp_path: Path) -> None:
    told = {} if add is None else {"add_bos_token": add}
    found = gguf(tmp_path, chat=chat, tokenizer=told)
    assert (found.bos_token, found.beginning) == (bos, beginning)


@pytest.mark.parametrize(("kind", "pre", "adds"), [("llama", "default", True), ("gpt2", "llama-bpe", True)])
def test_bos_of_a_gguf_that_does_not_say(kind: str, pre: str, adds: bool, tmp_path: Path) -> None:
    scores = {"scores": [0.0] * tiny_checkpoint.VOCABULARY}
    assert gguf(tmp_path, pre=pre, tokenizer_model=kind, tokenizer=scores).adds_bos is adds


def test_what_is_exported_begins_with_bos(tmp_path: Path) -> None:
    """The text it was measured on, the calibration text and the greedy prompts, as the page's prompts do."""
    checkpoint = gguf(tmp_path, chat=False, tokenizer={"add_bos_token": True})
    target = export(str(tmp_path / "tiny.gguf"), tmp_path / "models", tmp_path)
    manifest = Manifest.from_json((target / "manifest.json").read_text("utf-8"))
    assert manifest.check.ids[0] == 1 and 1 not in manifest.check.ids[1:]
    text = Choice().calibration_text(checkpoint.tokenizer, 100, checkpoint.beginning)
    assert text.shape[1] == 100 and text[:, 0].eq(1).all() and not text[:, 1:].eq(1).any()
    tokenizer = RustTokenizer.open(target)
    prompter = Prompter(manifest, lambda: greedy._DATE, tokenizer.added)
    asked = [plain.encode(tokenizer, prompter.prompt([{"role": "user", "content": each}])) for each in greedy.PROMPTS]
    assert greedy.prompts(checkpoint.tokenizer, checkpoint.chat_template, checkpoint.special_tokens) == asked


def test_a_damaged_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    folder = tiny_checkpoint.save("llama", tmp_path / "tiny")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Klingon"}}', encoding="utf-8")
    with pytest.raises(ExportError, match=r"tiny has no tokenizer that can be read \(.+\)\.$"):
        opened(folder)


def test_a_licence_of_any_encoding_and_name(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_bytes("© Müller".encode("cp1252"))
    card = "---\nlicense: other\nlicense_name: stabilityai-community\nlicense_link: LICENSE\n---\n# «Tiny»\n"
    (tmp_path / "README.md").write_bytes(card.encode("cp1252"))
    assert licence_of(tmp_path) == ("stabilityai-community", "© Müller")
    (tmp_path / "README.md").write_text('license: "mit"\n', encoding="utf-8-sig")
    assert licence_of(tmp_path)[0] == "mit"
    (tmp_path / "README.md").write_text("license: other\n", encoding="utf-8")
    assert licence_of(tmp_path)[0] == "other"
