"""The model of transformers.js on a GPU, of a checkpoint that Handbill exports: its "q4" without Handbill's operators.

A plain Optimum export of the dequantized checkpoint, whose matrices onnxruntime's own quantizer then rounds to 4 bits
in symmetric blocks of 32, as transformers.js' conversion script asks for it: config.json and onnx/model_q4.onnx.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path


def make(checkpoint: str, folder: Path, cache: Path) -> Path:
    """Write ``folder``, whole or not at all, for what ``exporter/export.py`` is given as ``checkpoint``."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from optimum.exporters.onnx import main_export
    from transformers import PreTrainedTokenizerFast

    from exporter.checkpoint import open_checkpoint
    from exporter.skeleton import whole_model

    if folder.is_dir():
        return folder
    opened = open_checkpoint(checkpoint, cache)
    model = whole_model(opened.config, opened.weights)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        torch_folder, traced, whole = (Path(name) / part for part in ("torch", "traced", "whole"))
        model.save_pretrained(torch_folder)
        PreTrainedTokenizerFast(tokenizer_object=opened.tokenizer).save_pretrained(torch_folder)
        del model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optimum's own, of the exporter that it has, and of tracing.
            main_export(str(torch_folder), output=traced, task="text-generation-with-past", do_validation=False)
        (whole / "onnx").mkdir(parents=True)
        quantizer = MatMulNBitsQuantizer(onnx.load(traced / "model.onnx"), block_size=32, is_symmetric=True, bits=4)
        quantizer.process()
        onnx.save(quantizer.model.model, whole / "onnx" / "model_q4.onnx")
        for settings in ("config.json", "generation_config.json"):
            shutil.copyfile(traced / settings, whole / settings)
        whole.rename(folder)
    return folder
