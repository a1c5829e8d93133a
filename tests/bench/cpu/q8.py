"""The model of transformers.js where there is no GPU, of the weights that Handbill exports.

``python tests/bench/cpu/q8.py`` (the bench runs it once): a plain Optimum export of the dequantized checkpoint, then
dynamic int8 as transformers.js' own conversion script asks for it (symmetric int8 weights, one scale per tensor), into
FOLDER: config.json and onnx/model_quantized.onnx.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "web")]

MODEL = "smollm2-135m"
FOLDER = ROOT / ".cache" / "bench" / f"{MODEL}-q8"


def make() -> Path:
    """Write FOLDER, whole or not at all, and return it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from optimum.exporters.onnx import main_export
    from transformers import PreTrainedTokenizerFast

    from exporter.checkpoint import open_checkpoint
    from exporter.skeleton import whole_model

    checkpoint = open_checkpoint(MODEL, ROOT / ".cache")
    model = whole_model(checkpoint.config, checkpoint.weights)
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as name:
        torch_folder, traced, whole = (Path(name) / part for part in ("torch", "traced", "whole"))
        model.save_pretrained(torch_folder)
        PreTrainedTokenizerFast(tokenizer_object=checkpoint.tokenizer).save_pretrained(torch_folder)
        del model
        main_export(str(torch_folder), output=traced, task="text-generation-with-past", do_validation=False)
        (whole / "onnx").mkdir(parents=True)
        quantize_dynamic(
            traced / "model.onnx",
            whole / "onnx" / "model_quantized.onnx",
            weight_type=QuantType.QInt8,
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
        for settings in ("config.json", "generation_config.json"):
            shutil.copyfile(traced / settings, whole / settings)
        shutil.rmtree(FOLDER, ignore_errors=True)
        whole.rename(FOLDER)
    return FOLDER


if __name__ == "__main__":
    print(make())
