"""The model of transformers.js on a GPU, of a checkpoint that Handbill exports: its "q4" without Handbill's operators.

A plain Optimum export of the dequantized checkpoint, whose matrices onnxruntime's own quantizer then rounds to 4 bits
in symmetric blocks of 32, as transformers.js' conversion script asks for it: config.json and onnx/model_q4.onnx.
"""

from __future__ import annotations

from pathlib import Path

from plain_export import exported


def make(checkpoint: str, folder: Path, cache: Path) -> Path:
    """Write ``folder``, whole or not at all, for what ``exporter/export.py`` is given as ``checkpoint``."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    if folder.is_dir():
        return folder
    with exported(checkpoint, folder, cache) as (model, target):
        quantizer = MatMulNBitsQuantizer(onnx.load(model), block_size=32, is_symmetric=True, bits=4)
        quantizer.process()
        onnx.save(quantizer.model.model, target / "model_q4.onnx")
    return folder
