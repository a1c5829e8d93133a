"""Which method rounds best: python tests/bench/quantization.py writes tests/bench/results/quantization.json and .md.

The only real weights that the package registry serves were 4 bit before, on a grid of their own. So that this gives no
method an advantage, the weights are dithered: each gets noise as wide as one step of its block, which is unbiased
and leaves no trace of the grid. All methods see the same copy; the text they are measured on is not the one that GPTQ,
AWQ and a budget look at. Whatever is in memory is float32, so perplexities here are before activations are rounded.
Each run is a process of its own, whose peak of memory is its own. Run it with names of runs to measure only those.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "web")]

import quantization_report  # noqa: E402

from exporter import verify  # noqa: E402
from exporter.blocks import Blocks  # noqa: E402
from exporter.checkpoint import open_checkpoint  # noqa: E402
from exporter.quantize import Choice, Fitting  # noqa: E402
from exporter.store import Store  # noqa: E402
from exporter.weights import Weights  # noqa: E402

RUNS = {
    "rtn": Choice("rtn"),
    "hqq": Choice("hqq"),
    "gptq": Choice("gptq"),
    "awq": Choice("awq"),
    "rtn, 4.75 bits": Choice("rtn", budget=4.75),
    "gptq, 4.75 bits": Choice("gptq", budget=4.75),
    "rtn, 5.5 bits": Choice("rtn", budget=5.5),
    "gptq, 5.5 bits": Choice("gptq", budget=5.5),
    "rtn, 8 bits": Choice("rtn", 8),
    "gptq, 8 bits": Choice("gptq", 8),
}


class Dithered:
    """A GGUF's weights plus noise, uniform over one step of the block that each weight was stored in."""

    def __init__(self, base: Weights) -> None:
        self.base = base
        self.known = "", torch.empty(0)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        weights = self.base.read(name, start, stop)
        return weights if len(self.shape(name)) == 1 else weights + self._noise(name)[start:stop]

    def blocks(self, name: str) -> Blocks | None:  # noqa: ARG002
        return None

    def refuse_unused(self, parameters: Collection[str], aliases: Collection[str]) -> None:
        self.base.refuse_unused(parameters, aliases)

    def stamp(self) -> object:
        return self.base.stamp()

    def _noise(self, name: str) -> Tensor:
        if self.known[0] != name:
            stored = self.base.blocks(name)
            assert stored is not None
            steps = stored.scales.float().repeat_interleave(32, 1)[:, : stored.columns]
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            self.known = name, (torch.rand(steps.shape, generator=generator) - 0.5) * steps
        return self.known[1]


def measure(choice: Choice) -> dict[str, Any]:
    """What ``choice`` makes of the dithered copy, and what that took: of this process, which it has for itself."""
    checkpoint = open_checkpoint(quantization_report.MODEL, ROOT / ".cache")
    ids = checkpoint.tokenizer.encode(verify.TEXT.read_text("utf-8")).ids[: verify.TEXT_TOKENS]
    text = choice.calibration_text(checkpoint.tokenizer, len(ids))
    with tempfile.TemporaryDirectory() as scratch:
        started = time.process_time()
        fitting = Fitting(choice, checkpoint.config, Dithered(checkpoint.weights), text)
        found = fitting.run(ids, range(1), Path(scratch))
        seconds = time.process_time() - started
        forms = Store(Path(scratch)).forms().values()
    weights = sum(part.rows * part.columns for part in forms)
    return {
        "perplexity_source": round(found.source, 3),
        "perplexity": round(found.quantized.perplexity, 3),
        "kl_divergence": round(found.quantized.divergence, 5),
        "top1_agreement": round(found.quantized.agreement, 4),
        "bits_per_weight": round(8 * sum(part.bytes for part in forms) / weights, 4),
        "processor_seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        "choice": {key: value for key, value in asdict(choice).items() if value and key != "calibration"},
    }


def main() -> None:
    path = quantization_report.FIGURES
    for name in sys.argv[1:] or RUNS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            run = alone.submit(measure, RUNS[name]).result()
        print(name, run, flush=True)
        known = json.loads(path.read_text("utf-8"))["runs"] if path.is_file() else {}
        runs = known | {name: run}
        figures = {
            "machine": f"{os.cpu_count()}-core x86 machine without a GPU",
            "tokens": verify.TEXT_TOKENS,
            "runs": {each: runs[each] for each in RUNS if each in runs},
        }
        path.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    quantization_report.write()


if __name__ == "__main__":
    main()
