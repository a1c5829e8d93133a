"""Exports of the tiny models, kept in .cache/tiny between runs. `python tests/tiny_exports.py` makes all of them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

import tiny_checkpoint
from exporter import graph
from exporter.export import export
from exporter.fetch import sha256
from handbill.manifest import NAME, File, Manifest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["exporter/*.py", "exporter/*.toml", "exporter/*.txt", "web/handbill/*.py", "tests/tiny_*.py"]
TOOLS = ["torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime"]


@cache
def _home() -> Path:
    """A folder named after everything that an export depends on."""
    key = hashlib.sha256(repr([importlib.metadata.version(tool) for tool in TOOLS]).encode())
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        key.update(path.read_bytes())
    return ROOT / ".cache" / "tiny" / key.hexdigest()[:16]


def exported(name: str) -> Path:
    """The export of the structure ``name`` (tiny_checkpoint.configs()) as it ships, its context CONTEXT tokens."""
    folder = _home() / "shipped" / name
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            source = tiny_checkpoint.save(name, Path(scratch) / name)
            cache = Path(scratch) / "cache"
            export(str(source), folder.parent, cache, context=tiny_checkpoint.CONTEXT, quant="rtn")
    return folder


def exact(name: str) -> Path:
    """The same at accuracy_level 0, for comparing runtimes token by token."""
    folder = _home() / "exact" / name
    if not folder.is_dir():
        partial = folder.with_name(f".{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(exported(name), partial)
        compute_exactly(partial)
        partial.rename(folder)
    return folder


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
