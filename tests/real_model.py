"""Real models: SmolLM2-135M-Instruct, which ``make demo`` exports, and others once exported; marker ``model``."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from exporter import graph
from exporter.native import NativeSession
from handbill.manifest import NAME, Manifest
from links import link

MODELS = Path(__file__).parents[1] / "models"
NAME_OF_DEMO = "smollm2-135m"
FOLDER = MODELS / NAME_OF_DEMO


def manifest(name: str = NAME_OF_DEMO) -> Manifest:
    """The manifest of ``name``. Skips the test where it has not been exported."""
    if not (MODELS / name / NAME).is_file():
        pytest.skip(f"models/{name} is not there: python exporter/export.py {name}")
    return Manifest.from_json((MODELS / name / NAME).read_text(encoding="utf-8"))


def exact_session(folder: Path, context: int, name: str = NAME_OF_DEMO) -> NativeSession:
    """A session on the graph of ``name`` at accuracy_level 0, copied to ``folder``.

    At the shipped level 4 activations are rounded to int8, and onnxruntime's kernel for one row rounds otherwise than
    the one for several: the same tokens in other chunks then move logits by as much as the rounding itself does (0.3
    on average, measured), and greedy answers part ways. In float32 they differ by 1e-5.
    """
    shipped = manifest(name)
    model = graph.load(MODELS / name / shipped.graphs["wasm"])
    graph.set_accuracy_level(model, 0)
    for shard in shipped.weights:
        link(MODELS / name / shard, folder / shard)
    onnx.save(model, folder / "model.onnx")
    return NativeSession(folder / "model.onnx", shipped.kv, context, threads=1)
