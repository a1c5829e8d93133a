"""Which method is the default, and why: python tests/bench/quantization_report.py.

Makes results/quantization.md out of quantization.json and of what whole exports took (export-*.json); tests/
test_readme.py holds it to the committed figures.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM
from transformers.integrations.accelerate import init_empty_weights

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "web")]

import model_table  # noqa: E402

from exporter.calibration import TOKENS  # noqa: E402
from exporter.estimate import config_of  # noqa: E402
from exporter.listing import count, estimated, size  # noqa: E402
from exporter.quantize import FITTED, SMALL, Choice  # noqa: E402
from exporter.recipes import RECIPES, find  # noqa: E402

MODEL = "smollm2-135m"
FIGURES = Path(__file__).parent / "results" / "quantization.json"
PAGE = FIGURES.with_suffix(".md")
SIZES = MODEL, "smollm2-360m", "qwen2.5-0.5b", "qwen3-0.6b", "smollm2-1.7b", "gemma-2b", "llama-3.1-8b"
NOT_TAKEN = "not taken"
WORDS = {"rtn": "to the nearest", "gptq": "GPTQ"}


def products(name: str) -> float:
    """Multiplications that GPTQ adds to the pass over a recipe's layers, about.

    TOKENS of calibration text go through every layer too, and their Hessian [columns, columns] is summed and factored
    for every input (q, k and v read one, gate and up another); then each row makes good its errors, column by column.
    """
    config = config_of(find(name).config)
    layers, config.num_hidden_layers = config.num_hidden_layers, 1
    with init_empty_weights(include_buffers=True):
        layer = AutoModelForCausalLM.from_config(config).get_decoder().layers[0]
    total, inputs = 0.0, {}
    for path, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            rows, columns = module.weight.shape
            inputs[re.sub(r"\b([qkv]|gate|up)_proj", "", path)] = columns
            total += rows * columns * (TOKENS + columns / 2)
    # Two Cholesky factors and an inverse of one: a sixth, a sixth and a third of the columns' cube.
    total += sum(TOKENS * columns**2 + columns**3 * 2 / 3 for columns in inputs.values())
    return layers * total


def table(runs: dict[str, Any]) -> list[str]:
    """A row for each run."""
    lines = [
        "| method | bits a weight | perplexity | of the copy's | KL divergence, nats a token | same likeliest token "
        "| processor seconds | threads | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        cells = [
            name,
            f"{run['bits_per_weight']:.3f}",
            f"{run['perplexity']:.2f}",
            f"{run['perplexity'] / run['perplexity_source']:.3f}",
            f"{run['kl_divergence']:.4f}",
            f"{run['top1_agreement']:.1%}" if "top1_agreement" in run else NOT_TAKEN,
            str(run["processor_seconds"]),
            str(run.get("threads", NOT_TAKEN)),
            size(run["peak_megabytes"] * 1e6) if "peak_megabytes" in run else NOT_TAKEN,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def by_size(runs: dict[str, Any]) -> list[str]:
    """What GPTQ would add to the export of larger models, a row each."""
    added = runs["gptq"]["processor_seconds"] - runs["rtn"]["processor_seconds"]
    here = products(MODEL)
    lines = ["| model | parameters | default | GPTQ's work | processor minutes |", "|---|---|---|---|---|"]
    for name in SIZES:
        parameters, times = estimated(find(name)).parameters, products(name) / here
        default = WORDS[Choice().method_for(parameters)]
        lines.append(f"| {name} | {count(parameters)} | {default} | {times:.1f} | {added * times / 60:.0f} |")
    return lines


def exports() -> list[str]:
    """What the exports in results/ took, a row each."""
    lines = [
        "| model | parameters | weights | seconds | processor seconds | peak memory | load at the start |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in RECIPES:
        if measured := model_table.figures(recipe):
            parameters = measured["parameters"]
            cells = [
                recipe.name if recipe.package else f"{recipe.name}, random weights",
                count(parameters),
                "the GGUF's blocks" if recipe.package else WORDS[Choice().method_for(parameters)],
                f"{measured['seconds']:.0f}",
                f"{measured['processor_seconds']:.0f}",
                size(measured["peak_megabytes"] * 1e6),
                f"{measured['load_at_start']:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def options(runs: dict[str, Any]) -> list[str]:
    """What other bits than the default's make of it, a line for each that was measured."""
    lines = []
    for run in runs.values():
        asked = run["choice"]
        if "budget" in asked or "bits" in asked:
            option = f"--budget {asked['budget']:g}" if "budget" in asked else f"--bits {asked['bits']}"
            plain = runs[asked["method"]]
            keys = ("bits_per_weight", "perplexity", "kl_divergence")
            bits, perplexity, divergence = (run[key] / plain[key] for key in keys)
            lines.append(
                f"- `--quant {asked['method']} {option}`: {bits:.3f} of the bytes of `--quant {asked['method']}` "
                f"alone, {perplexity:.3f} of its perplexity, {divergence:.3f} of its divergence."
            )
    return lines


def markdown(figures: dict[str, Any]) -> str:
    """The whole page."""
    runs = figures["runs"]
    gptq, awq = runs["gptq"], runs["awq"]

    def share(name: str, of: str, key: str = "perplexity") -> str:
        return f"{runs[name][key] / runs[of][key]:.3f}"

    fitted, small = (f"{each / 1e6:,.0f} million" for each in (FITTED, SMALL))
    lines = [
        "# Methods of quantization on a dithered copy of SmolLM2-135M-Instruct",
        "",
        f"{figures['machine']}; perplexity over {figures['tokens']} tokens of exporter/text.txt, which no method sees; "
        f"the copy itself has {gptq['perplexity_source']}. Made by tests/bench/quantization.py. Processor seconds are "
        "those of the whole pass, in which every method also measures both models on the text; they are to be compared "
        "between runs of as many threads, since threads that wait for each other count too. Where no bits are said, "
        "layers have 4 and the embedding 8; with a budget each matrix has 4 or 8, by its effect on predictions.",
        "",
        *table(runs),
        "",
        "## The default, and why",
        "",
        f"- **Up to {fitted} parameters: GPTQ.** At the same bytes its perplexity is {share('gptq', 'rtn')} of that of "
        f"rounding to the nearest, its divergence {share('gptq', 'rtn', 'kl_divergence')}. AWQ comes closer "
        f"({share('awq', 'gptq')} of GPTQ's perplexity) in {awq['processor_seconds'] / gptq['processor_seconds']:.1f} "
        "times the time, but it holds the whole model in float32, and would scale channels of what a GGUF's blocks go "
        "into exactly. `--quant awq` is there for whom that suits.",
        "- **Above: to the nearest.** GPTQ's work grows faster than the model. Computed from each model's shapes, in "
        "times SmolLM2's, and how long it would take at the rate measured there "
        f"({TOKENS:,} tokens of calibration):",
        "",
        *by_size(runs),
        "",
        f"- **Embedding and lm_head in 8 bits up to {small} parameters, in 4 above,** where they would be a third of a "
        "page.",
        *options(runs),
        "",
        "## What whole exports took",
        "",
        *exports(),
    ]
    return "\n".join(lines) + "\n"


def write() -> None:
    """results/quantization.md, from the runs that there are; of rtn, gptq and awq it cannot do without."""
    PAGE.write_text(markdown(json.loads(FIGURES.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    write()
    print(PAGE.relative_to(ROOT))
