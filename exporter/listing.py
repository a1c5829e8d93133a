"""What --list and --plan say: sizes that are computed, before anything is downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from exporter import branches, fetch, recipes
from exporter.checkpoint import open_gguf
from exporter.context import MAX_CONTEXT
from exporter.estimate import GPU_MEMORY, WASM_MEMORY, Estimate, Form, adapter_bytes, config_of, estimate
from exporter.gguf_file import GGUFWeights
from exporter.modules import longrope_switch
from exporter.quantize import Choice
from exporter.recipes import RECIPES, Recipe
from exporter.support import read_config, refuse_unsupported

_ROW = "{:20} {:>10} {:>9} {:>8} {:>8} {:>10} {:>9}  {:24} {}"
_BASE = "none: it completes text"


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
    bits: float = 0.0
    chat: str = ""


def listed() -> Iterator[str]:
    """Lines of a table of all recipes."""
    yield _ROW.format("name", "parameters", "download", "page", "context", "4 GiB WASM", "4 GB GPU", "licence", "from")
    for recipe in RECIPES:
        found = estimated(recipe)
        yield _ROW.format(
            recipe.name,
            count(found.parameters),
            size(_download(found, recipe)),
            size(found.page),
            f"{found.context:,}",
            fits(found, WASM_MEMORY),
            fits(found, GPU_MEMORY),
            recipe.licence,
            _origin(recipe),
        )
    yield (
        "\nSizes are computed from each model's config, for weights in our own 4 bits, or as the GGUF of a package has"
        "\nthem. The columns of memory say how many tokens of context it holds beside the weights, with the KV cache in"
        "\nfloat32; a dash: not even 256."
    )


def estimated(recipe: Recipe) -> Estimate:
    """The sizes of a recipe's model."""
    return estimate(config_of(recipe.config), bits=recipe.package.bits if recipe.package else 0.0)


def planned(name: str, wanted: int = 0, adapters: str = "", choice: Choice = Choice()) -> str:  # noqa: B008 (frozen)
    """What an export of ``name`` would take: a recipe, Hub id, folder or GGUF file. The rest as for --context and
    --adapters, and for --quant, --bits and --budget.

    Only a Hub id that is no recipe is asked for over the network, and of it only config.json. Raises ExportError as
    opening it would.
    """
    model = _find(name)
    refuse_unsupported(model.config)
    form = None if choice.anew else model.form
    beside = adapter_bytes(model.config, branches.parse(adapters), form) if adapters else {}
    found = estimate(model.config, wanted, model.form, choice, model.bits).with_adapters(beside.values())
    rows = {
        "from": model.origin,
        "licence": model.licence or "unknown",
        "parameters": f"{found.parameters:,}",
        "download": model.download or f"{size(found.download)} in 16 bits",
        "page": f"{size(found.page)}, {found.bits_per_weight:.2f} bits a weight",
        "adapters": _adapters(beside),
        "KV cache": f"{found.kv_bytes:,} bytes a token in float32",
        "context": f"{found.context:,} tokens{_why(model.config, found, wanted)}",
        "4 GiB WASM page": _holds(found, WASM_MEMORY),
        "4 GB GPU": _holds(found, GPU_MEMORY),
        "memory of export": f"about {size(found.memory)}",
        "disk of export": f"about {size(found.disk)}",
    }
    if model.chat:
        rows["chat template"] = model.chat
    if model.note:
        rows["note"] = model.note
    return "\n".join([model.title, *(f"  {key:18}{value}" for key, value in rows.items())])


def _find(name: str) -> Planned:
    path, recipe = Path(name), recipes.find(name)
    if path.is_file():
        checkpoint = open_gguf(path)
        weights = checkpoint.weights
        form = weights.first_row if isinstance(weights, GGUFWeights) else None
        return Planned(
            checkpoint.title,
            path.name,
            checkpoint.licence,
            "",
            checkpoint.config,
            "none, it is here",
            form,
            chat="the GGUF's metadata" if checkpoint.chat_template else _BASE,
        )
    if path.is_dir():
        return Planned(path.resolve().name, "a folder", "", "", read_config(path), "none, it is here")
    if recipe:
        package = recipe.package
        return Planned(
            recipe.title,
            _origin(recipe),
            recipe.licence,
            recipe.note,
            config_of(recipe.config),
            f"{size(package.bytes)}, a GGUF" if package else "",
            bits=package.bits if package else 0.0,
            chat=recipe.chat or _BASE,
        )
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
    return recipe.package.bytes if recipe.package else found.download


def _adapters(beside: Mapping[str, int]) -> str:
    each = ", ".join(f"{title} {size(taken)}" for title, taken in beside.items())
    return f"{each}; fetched when first chosen" if each else "none"


def _holds(found: Estimate, memory: int) -> str:
    tokens = found.fits(memory)
    return f"holds {tokens:,} tokens beside the weights" if tokens else "too small: the weights leave no room"


def fits(found: Estimate, memory: int) -> str:
    """Tokens of context beside the weights in ``memory`` bytes, a dash for none."""
    tokens = found.fits(memory)
    return f"{tokens:,}" if tokens else "-"


def count(number: int) -> str:
    """Parameters, in millions or billions."""
    return f"{number / 1e9:.2f} B" if number >= 999.5e6 else f"{number / 1e6:.0f} M"


def size(number: int) -> str:
    """Bytes, in kB, MB or GB."""
    if number >= 1e9:
        return f"{number / 1e9:.2f} GB"
    return f"{number / 1e6:.0f} MB" if number >= 1e6 else f"{number / 1e3:.0f} kB"
