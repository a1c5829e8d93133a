"""A whole manifest to start from: the tests change one thing and look what happens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from handbill.manifest import (
    Architecture,
    File,
    Generation,
    KVLayout,
    Licence,
    Manifest,
    Quantization,
    Source,
    Verification,
)


def make_manifest(**changes: Any) -> Manifest:
    """A manifest of an invented tiny model, with ``changes`` to its fields."""
    names = ["model.onnx", "model_webgpu.onnx", "weights-00.bin", "tokenizer.json", "plan.json", "LICENSE"]
    manifest = Manifest(
        slug="tiny-1m",
        title="Tiny 1M",
        source=Source("hub", "someone/tiny", "0" * 40),
        licence=Licence("Apache-2.0", "LICENSE"),
        architecture=Architecture("llama", 2, 64, 4, 2, 16, 512, 2048, 1_000_000),
        kv=KVLayout("float32", 2, 2, 16),
        quantization=Quantization("rtn", 4, 8, 32, 4.5),
        generation=Generation(),
        verification=Verification(1e-6, 2e-6, 3e-6, 256, "a text", 29.4, 29.5, 1.003),
        graphs={"wasm": "model.onnx", "webgpu": "model_webgpu.onnx"},
        weights=["weights-00.bin"],
        tokenizer="tokenizer.json",
        eos_ids=[2],
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{{ messages[0].content }}",
        files=[File(name, 10 + i, f"{i:064x}") for i, name in enumerate(names)],
        tools={"torch": "2.13.0"},
        plan="plan.json",
    )
    return replace(manifest, **changes)
