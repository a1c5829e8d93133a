"""The real SmolLM2-135M-Instruct that ``make demo`` exports; for tests with the marker ``model``."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from exporter import graph
from exporter.native import NativeSession
from handbill.manifest import NAME, Manifest
from links import link

FOLDER = Path(__file__).parents[1] / "models" / "smollm2-135m"


def manifest() -> Manifest:
    """Its manifest. Skips the test where it has not been exported."""
    if not (FOLDER / NAME).is_file():
        pytest.skip("models/smollm2-135m is not there: python exporter/export.py smollm2-135m")
    return Manifest.from_json((FOLDER / NAME).read_text(encoding="utf-8"))


def exact_session(folder: Path, context: int) -> NativeSession:
    """A session on its graph at accuracy_level 0, copied to ``folder``.

    At the shipped level 4 activations are rounded to int8, and onnxruntime's kernel for one row rounds otherwise than
    the one for several: the same tokens in other chunks then move logits by as much as the rounding itself does (0.3
    on average, measured), and greedy answers part ways. In float32 they differ by 1e-5.
    """
    shipped = manifest()
    model = graph.load(FOLDER / shipped.graphs["wasm"])
    graph.set_accuracy_level(model, 0)
    for name in shipped.weights:
        link(FOLDER / name, folder / name)
    onnx.save(model, folder / "model.onnx")
    return NativeSession(folder / "model.onnx", shipped.kv, context, threads=1)
