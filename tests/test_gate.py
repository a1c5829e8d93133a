"""The gate: strict where float32 is enough, held to float64 where it is not, and faults are of another size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import tiny_checkpoint
import tiny_exports
from exporter import pipeline, verify
from exporter.checkpoint import open_checkpoint
from exporter.errors import ExportError
from exporter.exact import exact_logits
from exporter.export import export
from exporter.native import NativeSession
from exporter.skeleton import skeleton
from exporter.store import Store
from exporter.streamed import stream
from handbill.manifest import Manifest, Verification
from test_streamed import IDS, nearest

LOUD = 40.0
"""What the last norm of the tiny Gemma 3 is multiplied by: its logits then reach 370."""

NEVER_NARROW = {"mm", "addmm", "_softmax", "rsqrt", "mean", "tanh", "silu", "gelu", "native_layer_norm", "embedding"}


class Narrow(TorchDispatchMode):
    """Notes what computes in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.dtype is torch.float32:
            self.seen.add(func.overloadpacket.__name__)
        return found


# Norms of each kind, soft-capping, scaled embeddings and logits, biases, partial rotary, longrope, an own attention.
@pytest.mark.parametrize(
    "name",
    ["gemma2", "gemma-3-270m", "granite-3-2b", "phi-2", "phi-3.5-mini", "stablelm-2-1.6b", "tinyllama-1.1b-chat"],
)
def test_exact_logits_are_the_models_and_nothing_of_them_is_float32(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint.save(name, tmp_path / "tiny")), tmp_path)
    weights, store = checkpoint.weights, Store(tmp_path / "store")
    found = stream(skeleton(checkpoint.config, weights), weights, store, nearest, IDS, range(len(IDS)))
    with Narrow() as narrow:
        exact = exact_logits(skeleton(checkpoint.config, weights), weights, store, IDS, 70)
    assert not narrow.seen & NEVER_NARROW
    assert exact.shape == (70, tiny_checkpoint.VOCABULARY) and exact.dtype == np.float32
    difference = np.abs(exact - found.reference[-70:]).max()
    assert 0 < difference < 5e-5


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 whose logits are larger than float32 can tell to 1e-4."""
    folder = tiny_checkpoint.save("gemma-3-270m", tmp_path_factory.mktemp("loud") / "loud")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = (tensors["model.norm.weight"] + 1) * LOUD - 1  # Gemma multiplies by 1 + weight
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def exported(folder: Path, tmp_path: Path) -> Verification:
    target = export(str(folder), tmp_path, tmp_path, context=tiny_checkpoint.CONTEXT, quant="rtn")
    return Manifest.from_json((target / "manifest.json").read_text("utf-8")).verification


def test_large_logits_are_held_against_float64(loud: Path, tmp_path: Path) -> None:
    checked = exported(loud, tmp_path)
    assert verify.TOLERANCE < checked.allowed == verify.ROUNDING * checked.float32 < 20 * verify.TOLERANCE
    assert verify.TOLERANCE < max(checked.prefill, checked.chunked, checked.decode) <= checked.allowed
    assert "float32 is" in (tmp_path / "loud" / "report.html").read_text("utf-8")


def test_small_ones_are_not() -> None:
    folder = tiny_exports.exported("gemma-3-270m")
    checked = Manifest.from_json((folder / "manifest.json").read_text("utf-8")).verification
    assert (checked.float32, checked.allowed) == (0.0, verify.TOLERANCE)
    assert "float32 is" not in (folder / "report.html").read_text("utf-8")


def spoil(fault: str, model: Any, tensors: dict[str, Any]) -> None:
    """A window one token off, one of a layer's scales 5 % too large, or one weight a step from where it belongs."""
    if fault == "scale":
        halves = [tensor for tensor in model.graph.initializer if tensor.data_type == tensor.FLOAT16]
        scales = max(halves, key=lambda tensor: math.prod(tensor.dims))
        values = numpy_helper.to_array(scales).copy()
        values.flat[values.size // 2] *= 1.05
        scales.raw_data = values.tobytes()
    elif fault == "code":
        name = next(name for name in tensors if "o_proj" in name and name.endswith("codes"))
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[tensors[name].numel() // 2] ^= 1
    for node in model.graph.node:
        for item in node.attribute:
            if item.name == "local_window_size" and item.i > 0:
                item.i += {"longer": 1, "shorter": -1}.get(fault, 0)


@pytest.mark.parametrize("fault", ["longer", "shorter", "scale", "code"])
def test_a_small_fault_is_not_taken_for_rounding(
    fault: str, loud: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pipeline._write_graphs

    def faulty(model: Any, tensors: dict[str, Any], *others: Any) -> Any:
        spoil(fault, model, tensors)
        return original(model, tensors, *others)

    monkeypatch.setattr(pipeline, "_write_graphs", faulty)
    with pytest.raises(ExportError, match=r"model\.onnx differs from eager torch by"):
        exported(loud, tmp_path)


def test_a_large_vocabulary_is_asked_for_seldom_and_only_for_what_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every token still goes through the graph, the last 64 alone, and each run's last step is compared."""
    folder = tiny_exports.exact("gemma-3-270m")
    manifest = Manifest.from_json((folder / "manifest.json").read_text("utf-8"))
    steps: list[tuple[int, int]] = []
    logits = NativeSession.logits

    def spy(self: NativeSession, ids: Any, positions: int = 1) -> Any:
        steps.append((len(ids), positions))
        return logits(self, ids, positions)

    monkeypatch.setattr(NativeSession, "logits", spy)
    monkeypatch.setattr(verify, "ASKED", 2 * tiny_checkpoint.VOCABULARY)
    session = NativeSession.open(folder)
    ids = [index % 500 for index in range(276)]
    reference = logits(session, ids, 150)  # of the last 150 of 276
    gate = verify.Gate(reference, ids, lambda: pytest.fail("float32 is enough here"))
    found = gate.passed(folder / manifest.graphs["wasm"], manifest.kv, lambda _: None)
    alone = [(1, 0)] * 31 + [(1, 1)]
    assert steps == [(276, 150), (100, 0), (100, 74), (12, 12), *alone, *alone]
    assert found.worst < 2e-5
    wrong = reference.copy()
    wrong[-1, 7] += 1
    with pytest.raises(ExportError, match="by 1"):
        verify.Gate(wrong, ids, lambda: wrong).passed(folder / manifest.graphs["wasm"], manifest.kv, lambda _: None)
    wrong[-1, 7] = math.nan
    with pytest.raises(ExportError, match="by inf"):
        verify.Gate(wrong, ids, lambda: wrong).passed(folder / manifest.graphs["wasm"], manifest.kv, lambda _: None)


@pytest.mark.parametrize(
    ("parameters", "vocabulary", "window", "most", "expected"),
    [
        (10, 512, 0, 1024, (1024, 256, 256)),
        (10, 512, 48, 1024, (1024, 256, 256)),  # past it anyway
        (270_000_000, 262_144, 512, 1024, (1024, 576, 256)),
        (270_000_000, 262_144, 512, 570, (570, 256, 256)),  # the text ends before
        (1_000_000_000, 49_152, 0, 1024, (300, 160, 160)),
        (2_506_000_000, 256_000, 4096, 1024, (119, 64, 64)),
        (8 << 30, 128_256, 0, 1024, (64, 64, 64)),
        (10, 512, 0, 40, (40, 40, 40)),
    ],
)
def test_how_much_goes_through(
    parameters: int, vocabulary: int, window: int, most: int, expected: tuple[int, int, int]
) -> None:
    found = verify.tokens(parameters, vocabulary, window, most)
    assert (found.text, found.gate, found.compared) == expected
    assert found.kept[-1] == found.gate - 1 and found.check - 1 in found.kept
    assert set(range(found.gate - found.compared, found.gate)) <= set(found.kept)
