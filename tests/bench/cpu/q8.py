"""The model of transformers.js where there is no GPU, of the weights that Handbill exports.

``python tests/bench/cpu/q8.py`` (the bench runs it once): a plain Optimum export of the dequantized checkpoint, then
dynamic int8 as transformers.js' own conversion script asks for it (symmetric int8 weights, one scale per tensor), into
FOLDER: config.json and onnx/model_quantized.onnx.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "web"), str(ROOT / "tests" / "bench")]

from plain_export import exported  # noqa: E402

MODEL = "smollm2-135m"
FOLDER = ROOT / ".cache" / "bench" / f"{MODEL}-q8"


def make() -> Path:
    """Write FOLDER, whole or not at all, and return it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with exported(MODEL, FOLDER, ROOT / ".cache") as (model, target):
        quantize_dynamic(
            model,
            target / "model_quantized.onnx",
            weight_type=QuantType.QInt8,
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
    return FOLDER


if __name__ == "__main__":
    print(make())
