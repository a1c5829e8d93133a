"""Turn a conversation into the text a model reads, through the model's own chat template.

The environment is the one that transformers' ``apply_chat_template`` gives a template (transformers 4.57,
``utils/chat_template_utils.py``), so that a template renders to the same bytes here, in CPython and in Pyodide.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from handbill.manifest import Manifest
from handbill.plain import Plain

Message = Mapping[str, Any]
"""One turn: ``role`` (system, user, assistant, tool) and ``content``; a template may read further keys."""

_PROBE = "handbill-system-probe"


class ChatError(ValueError):
    """A conversation that the model's template cannot render. The message is a sentence for the reader."""

    kind = "template"


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}`` marks what an assistant wrote, for training; here it only prints.

    As in transformers, a ``set`` inside stays inside.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class ChatTemplate:
    """A compiled chat template.

    ``special_tokens`` are template variables such as ``bos_token``; an empty one stays undefined, as it does in
    transformers. ``clock`` gives the local time for ``strftime_now`` (Llama 3.2 writes today's date).
    Raises ChatError for a source that is not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], clock: Callable[[], datetime]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda format: clock().strftime(format)
        self._special_tokens = {name: token for name, token in special_tokens.items() if token}
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ChatError(
                f"The model's chat template is broken at line {error.lineno} ({error.message}); "
                "mend it in the checkpoint and export the model again."
            ) from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The conversation as text, ready for ``Tokenizer.encode`` (the template writes BOS itself).

        ``variables`` are further template variables, such as Qwen3's ``enable_thinking``; they win over special tokens.
        Raises ChatError if the template refuses the conversation or fails on it.
        """
        given = {"tools": None, "documents": None, **self._special_tokens, **variables}
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **given)
        except TemplateError as error:
            raise ChatError(
                f"The model's chat template refuses this conversation: {error.message or error}."
            ) from error
        except Exception as error:
            # A template is the checkpoint's code: whatever it raises (a missing key, a None added to a string) means
            # that it and this conversation do not fit, and nothing of ours failed.
            raise ChatError(
                f"The model's chat template fails on this conversation ({type(error).__name__}: {error})."
            ) from error

    def takes_system(self) -> bool:
        """Whether a system message reaches the model: Gemma 1 and 2 refuse one, Phi-3 leaves it out silently."""
        conversation = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "?"}]
        try:
            return _PROBE in self.render(conversation)
        except ChatError:
            return False


def is_base(manifest: Manifest) -> bool:
    """Whether the model has no chat template: a base model, which continues text and does not answer."""
    return not manifest.chat_template.strip()


def completion_prompt(messages: Sequence[Message], bos_token: str) -> str:
    """The text that a base model continues: every message's content as written, one after the other, behind BOS.

    Roles and separators are left out, because a base model has never seen any. Raises ChatError for content that is
    not text.
    """
    contents = [message.get("content") for message in messages]
    if not all(isinstance(content, str) for content in contents):
        raise ChatError("This model only continues text, and a message holds something else.")
    return bos_token + "".join(str(content) for content in contents)


class Prompter:
    """Writes a model's prompts: through its chat template, or as plain text where it has none (``is_base``).

    ``added`` is ``Tokenizer.added``: what a message spells of it stays plain text (see ``plain``).
    Raises ChatError for a chat template that does not compile.
    """

    def __init__(self, manifest: Manifest, clock: Callable[[], datetime], added: Mapping[str, bool]) -> None:
        self.is_base = is_base(manifest)
        self._bos_token = manifest.bos_token
        self._plain = Plain(added, manifest.chat_template)
        self._template: ChatTemplate | None = None
        if not self.is_base:
            tokens = {"bos_token": manifest.bos_token, "eos_token": manifest.eos_token}
            self._template = ChatTemplate(manifest.chat_template, tokens, clock)
        self.takes_system = self._template is not None and self._template.takes_system()

    def prompt(self, messages: Sequence[Message], **variables: Any) -> str:
        """The text for the next answer to ``messages``, to be tokenized by ``plain.encode``. Raises ChatError."""
        if not messages:
            raise ChatError("There is no message to answer: write one first.")
        if self._template is None:
            return self._bos_token + self._plain.text(completion_prompt(messages, ""))
        return self._template.render([self._plain.message(message) for message in messages], **variables)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' ``tojson``: jinja2's own escapes <, >, & and ' for HTML, which a model must not see."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    """What a template calls to refuse a conversation."""
    raise TemplateError(message)
