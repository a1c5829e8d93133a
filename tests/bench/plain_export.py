"""What transformers.js is given of a checkpoint that Handbill exports: a plain Optimum export, less our operators."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exported(checkpoint: str, folder: Path, cache: Path) -> Iterator[tuple[Path, Path]]:
    """The dequantized ``checkpoint`` (as exporter/export.py is given it) as a float32 model.onnx, and the folder that
    its quantized form goes to. After the block ``folder`` is whole, or as it was where the block has thrown:
    config.json, generation_config.json and what lies in onnx/.
    """
    from optimum.exporters.onnx import main_export
    from transformers import PreTrainedTokenizerFast

    from exporter.checkpoint import open_checkpoint
    from exporter.skeleton import whole_model

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
        yield traced / "model.onnx", whole / "onnx"
        for settings in ("config.json", "generation_config.json"):
            shutil.copyfile(traced / settings, whole / settings)
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)
