"""Exports of the tiny models, kept in .cache/tiny between runs. `python tests/tiny_exports.py` makes all of them."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

import tiny_checkpoint
from export_cache import home, made
from exporter import graph
from exporter.export import export
from exporter.fetch import sha256
from handbill.manifest import NAME, File, Manifest


def exported(name: str) -> Path:
    """The export of the structure ``name`` (tiny_checkpoint.configs()) as it ships, its context CONTEXT tokens."""

    def make(partial: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            source = tiny_checkpoint.save(name, Path(scratch) / name)
            output, cache = Path(scratch) / "models", Path(scratch) / "cache"
            shutil.copytree(export(str(source), output, cache, context=tiny_checkpoint.CONTEXT, quant="rtn"), partial)

    return made(home() / "shipped" / name, make)


def exact(name: str) -> Path:
    """The same at accuracy_level 0, for comparing runtimes token by token."""

    def make(partial: Path) -> None:
        shutil.copytree(exported(name), partial)
        compute_exactly(partial)

    return made(home() / "exact" / name, make)


def compute_exactly(folder: Path) -> None:
    """accuracy_level 0: with int8 activations, which each runtime rounds in its own way, a random model's near ties
    fall differently, and tokens could not be compared."""
    manifest = Manifest.from_json((folder / NAME).read_text(encoding="utf-8"))
    for name in set(manifest.graphs.values()):
        model = graph.load(folder / name)
        graph.set_accuracy_level(model, 0)
        (folder / name).write_bytes(model.SerializeToString())
    files = [
        File(entry.name, (folder / entry.name).stat().st_size, sha256(folder / entry.name)) for entry in manifest.files
    ]
    (folder / NAME).write_text(dataclasses.replace(manifest, files=files).to_json(), encoding="utf-8")


if __name__ == "__main__":
    for each in sys.argv[1:] or tiny_checkpoint.configs():
        print(exact(each))
