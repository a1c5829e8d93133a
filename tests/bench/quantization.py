"""Which method rounds best: python tests/bench/quantization.py writes tests/bench/results/quantization.json and .md.

The only real weights that the package registry serves were 4 bit before, on a grid of their own. So that this gives no
method an advantage, the weights are dithered: each gets noise as wide as one step of its block, which is unbiased
and leaves no trace of the grid. All methods make the same bytes of the same copy; the text they are measured on is not
the one that GPTQ and AWQ look at. Whatever is in memory is float32, so perplexities here are before activations are
rounded. Run it with names of runs to measure only those.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "web")]

from exporter import verify  # noqa: E402
from exporter.blocks import Blocks  # noqa: E402
from exporter.checkpoint import open_checkpoint  # noqa: E402
from exporter.quantize import Choice, Fitting  # noqa: E402
from exporter.store import Store  # noqa: E402
from exporter.weights import Weights  # noqa: E402

MODEL = "smollm2-135m"
RESULTS = Path(__file__).parent / "results"
RUNS = {
    "rtn": Choice("rtn"),
    "hqq": Choice("hqq"),
    "awq": Choice("awq"),
    "gptq": Choice("gptq"),
    "rtn, 4.75 bits": Choice("rtn", budget=4.75),
    "gptq, 4.75 bits": Choice("gptq", budget=4.75),
    "gptq, 5.5 bits": Choice("gptq", budget=5.5),
    "rtn, 8 bits": Choice("rtn", 8),
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
    checkpoint = open_checkpoint(MODEL, ROOT / ".cache")
    ids = checkpoint.tokenizer.encode(verify.TEXT.read_text("utf-8")).ids[: verify.TEXT_TOKENS]
    text = choice.calibration_text(checkpoint.tokenizer, len(ids))
    with tempfile.TemporaryDirectory() as scratch:
        started = time.process_time()
        fitting = Fitting(choice, checkpoint.config, Dithered(checkpoint.weights), text)
        found = fitting.run(ids, 1, Path(scratch))
        seconds = time.process_time() - started
        forms = Store(Path(scratch)).forms().values()
    weights = sum(part.rows * part.columns for part in forms)
    return {
        "perplexity_source": round(found.source, 3),
        "perplexity": round(found.quantized.perplexity, 3),
        "kl_divergence": round(found.quantized.divergence, 5),
        "bits_per_weight": round(8 * sum(part.bytes for part in forms) / weights, 4),
        "processor_seconds": round(seconds),
        "choice": {key: value for key, value in asdict(choice).items() if value and key != "calibration"},
    }


def table(figures: dict[str, Any]) -> str:
    runs = figures["runs"]
    plain = runs["rtn"]
    lines = [
        "# Methods of quantization on a dithered copy of SmolLM2-135M-Instruct",
        "",
        f"{figures['machine']}; perplexity over {figures['tokens']} tokens of exporter/text.txt, which no method sees;",
        f"the copy itself has {plain['perplexity_source']}. Made by tests/bench/quantization.py. Processor seconds",
        "are those of the whole pass, in which every method also measures both models on the text.",
        "",
        "| method | bits a weight | perplexity | of the copy's | KL divergence, nats a token | processor seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        ratio = run["perplexity"] / run["perplexity_source"]
        lines.append(
            f"| {name} | {run['bits_per_weight']:.3f} | {run['perplexity']:.2f} | {ratio:.3f} "
            f"| {run['kl_divergence']:.4f} | {run.get('processor_seconds', 'not taken')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    path = RESULTS / "quantization.json"
    for name in sys.argv[1:] or RUNS:
        run = measure(RUNS[name])
        print(name, run, flush=True)
        known = json.loads(path.read_text("utf-8"))["runs"] if path.is_file() else {}
        runs = known | {name: run}
        figures = {
            "machine": f"{os.cpu_count()}-core x86 machine without a GPU",
            "tokens": verify.TEXT_TOKENS,
            "runs": {each: runs[each] for each in RUNS if each in runs},
        }
        path.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        if "rtn" in runs:
            path.with_suffix(".md").write_text(table(figures), "utf-8")


if __name__ == "__main__":
    main()
