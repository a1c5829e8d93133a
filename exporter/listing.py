"""What --list and --plan say: sizes that are computed, before anything is downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from exporter import fetch, recipes
from exporter.checkpoint import open_gguf
from exporter.context import MAX_CONTEXT
from exporter.estimate import GPU_MEMORY, WASM_MEMORY, Estimate, Form, config_of, estimate
from exporter.gguf_file import GGUFWeights
from exporter.modules import longrope_switch
from exporter.recipes import RECIPES, Recipe
from exporter.support import read_config, refuse_unsupported

_ROW = "{:20} {:>10} {:>9} {:>8} {:>8} {:>10} {:>9}  {:24} {}"


@dataclass(frozen=True)
class Planned:
    """A model that was named, with as much as can be known of it without its weights."""

    title: str
    origin: str
    licence: str
    note: str
    config: PretrainedConfig
    download: str = ""
    form: Form | None = None


def listed() -> Iterator[str]:
    """Lines of a table of all recipes."""
    yield _ROW.format("name", "parameters", "download", "page", "context", "4 GiB WASM", "4 GB GPU", "licence", "from")
    for recipe in RECIPES:
        found = estimate(config_of(recipe.config))
        yield _ROW.format(
            recipe.name,
            _count(found.parameters),
            _bytes(_download(found, recipe)),
            _bytes(found.page),
            f"{found.context:,}",
            _fits(found, WASM_MEMORY),
            _fits(found, GPU_MEMORY),
            recipe.licence,
            _origin(recipe),
        )
    yield (
        "\nSizes are computed from each model's config, for weights in our own 4 bits. The columns of memory say how"
        "\nmany tokens of context it holds beside the weights, with the KV cache in float32; a dash: not even 256."
    )


def planned(name: str, wanted: int = 0) -> str:
    """What an export of ``name`` would take: a recipe, Hub id, folder or GGUF file. ``wanted`` as for --context.

    Only a Hub id that is no recipe is asked for over the network, and of it only config.json. Raises ExportError as
    opening it would.
    """
    model = _find(name)
    refuse_unsupported(model.config)
    found = estimate(model.config, wanted, model.form)
    rows = {
        "from": model.origin,
        "licence": model.licence or "unknown",
        "parameters": f"{found.parameters:,}",
        "download": model.download or f"{_bytes(found.download)} in 16 bits",
        "page": f"{_bytes(found.page)}, {found.bits_per_weight:.2f} bits a weight",
        "KV cache": f"{found.kv_bytes:,} bytes a token in float32",
        "context": f"{found.context:,} tokens{_why(model.config, found, wanted)}",
        "4 GiB WASM page": _holds(found, WASM_MEMORY),
        "4 GB GPU": _holds(found, GPU_MEMORY),
        "memory of export": f"about {_bytes(found.memory)}",
        "disk of export": f"about {_bytes(found.disk)}",
    }
    if model.note:
        rows["note"] = model.note
    return "\n".join([model.title, *(f"  {key:18}{value}" for key, value in rows.items())])


def _find(name: str) -> Planned:
    path, recipe = Path(name), recipes.find(name)
    if path.is_file():
        checkpoint = open_gguf(path)
        weights = checkpoint.weights
        form = weights.first_row if isinstance(weights, GGUFWeights) else None
        return Planned(checkpoint.title, path.name, checkpoint.licence, "", checkpoint.config, "none, it is here", form)
    if path.is_dir():
        return Planned(path.resolve().name, "a folder", "", "", read_config(path), "none, it is here")
    if recipe:
        download = "a GGUF of about the page's size" if recipe.package else ""
        return Planned(recipe.title, _origin(recipe), recipe.licence, recipe.note, config_of(recipe.config), download)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise recipes.unknown(name)
    return Planned(name, "the Hub", "", "", read_config(fetch.config_from_hub(name)))


def _origin(recipe: Recipe) -> str:
    return "the package registry" if recipe.package else recipe.hub


def _why(config: PretrainedConfig, found: Estimate, wanted: int) -> str:
    """What keeps the context below the model's own."""
    own = int(config.max_position_embeddings)
    if found.context == own or wanted:
        return ""
    reasons = {
        MAX_CONTEXT: "more takes a browser minutes to read",
        longrope_switch(config): "there it would turn to its second rotary table",
    }
    reason = reasons.get(found.context, "the KV cache of more takes over 2 GiB")
    return f" of its {own:,}: {reason}; --context asks for another"


def _download(found: Estimate, recipe: Recipe) -> int:
    return found.shards if recipe.package else found.download


def _holds(found: Estimate, memory: int) -> str:
    tokens = found.fits(memory)
    return f"holds {tokens:,} tokens beside the weights" if tokens else "too small: the weights leave no room"


def _fits(found: Estimate, memory: int) -> str:
    tokens = found.fits(memory)
    return f"{tokens:,}" if tokens else "-"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 999.5e6 else f"{number / 1e6:.0f} M"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
