"""Handbill's CPU session in headless Chromium against its peers, interleaved: python tests/bench/cpu/bench.py.

Needs the export (make model), the peers (npm ci --ignore-scripts in tests/bench/peers) and a quiet machine for about
fifteen minutes. Each round has another prompt, so that nobody's cache of prompts helps. Writes every raw figure to
tests/bench/results/cpu.json, from which report.py makes the table and the plot.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import report
from playwright.sync_api import sync_playwright
from q8 import FOLDER
from runtimes import MODEL, PEERS, Run, in_browser, native, serve
from tokenizers import Tokenizer

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
NPM = ["@huggingface/transformers", "onnxruntime-web", "@wllama/wllama"]
OURS = ["ours", "ours, plain SIMD", "ours, two threads"]
EVERYBODY = ["native onnxruntime", *OURS, "transformers.js q8", "wllama Q4_1"]
SLOW_ROUNDS = 3
"""Rounds for what takes a minute each: wllama's long prompt, and the whole curve against context length."""

TASKS: dict[str, dict[str, Any]] = {
    "decode": {"stops": [50], "tokens": 32, "runtimes": EVERYBODY, "fewer": []},
    "prompt": {"stops": [518], "tokens": 1, "runtimes": EVERYBODY, "fewer": ["wllama Q4_1"]},
    "cold turn": {"stops": [1040], "tokens": 1, "runtimes": ["ours"], "fewer": []},
    "second turn": {"stops": [1000, 1040], "tokens": 1, "runtimes": ["ours"], "fewer": []},
    "context": {
        "stops": [100, 512, 1024, 2048, 4096],
        "tokens": 16,
        "runtimes": ["native onnxruntime", "ours"],
        "fewer": ["native onnxruntime"],
    },
}
"""Task → the stops of its prompt, tokens to decode at each, who takes part, and who only in SLOW_ROUNDS rounds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for cpu.json, cpu.md and cpu.svg")
    arguments = parser.parse_args()
    if not FOLDER.is_dir():
        print("Making the model of transformers.js, once", flush=True)
        subprocess.run([sys.executable, Path(__file__).with_name("q8.py")], check=True)
    ids = long_text()
    started, load = time.monotonic(), os.getloadavg()[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=ARGUMENTS
        )
        versions = find_versions(browser.version)
        runs = {"native onnxruntime": native()}
        opened = {}
        for name, (run, facts) in in_browser(browser, serve()).items():
            runs[name], opened[name] = run, facts
            print(f"{name}: opened in {facts['seconds']:.2f} s, {facts['runtime']}", flush=True)
        figures = measure(runs, ids, arguments.rounds)
        browser.close()
    result = {
        "machine": f"{os.cpu_count()}-core x86 machine without a GPU",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "minutes": round((time.monotonic() - started) / 60, 1),
        "load": {"start": round(load, 2), "end": round(os.getloadavg()[0], 2)},
        "versions": versions,
        "opened": opened,
        "figures": figures,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cpu.json").write_text(json.dumps(report.rounded(result), separators=(",", ":")) + "\n")
    report.write(arguments.out)


def measure(runs: dict[str, Run], ids: list[int], rounds: int) -> dict[str, dict[str, list[Any]]]:
    """Task → runtime → the points of each round."""
    figures: dict[str, dict[str, list[Any]]] = {}
    for number in range(rounds):
        for task, (stops, tokens, names, fewer) in ((task, each.values()) for task, each in TASKS.items()):
            for name in names:
                if name in fewer and number >= SLOW_ROUNDS:
                    continue
                prompt = ids[number * 61 :][: stops[-1]]
                points = runs[name](prompt, stops, tokens)
                figures.setdefault(task, {}).setdefault(name, []).append(points)
                seconds, each = points[-1]["seconds"], points[-1]["milliseconds"]
                print(f"{number + 1}/{rounds} {task}, {name}: {seconds:.2f} s, {each:.1f} ms a token", flush=True)
    return figures


def long_text() -> list[int]:
    """More than 4,500 token ids of prose: the text that the exporter measures perplexity on, repeated."""
    text = (MODEL.parents[1] / "exporter" / "text.txt").read_text("utf-8")
    ids: list[int] = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text * 6).ids
    assert len(ids) > 4500
    return ids


def find_versions(chromium: str) -> dict[str, str]:
    packages = {name: json.loads((PEERS / name / "package.json").read_text()) for name in NPM}
    found = {name: str(package["version"]) for name, package in packages.items()}
    return {"chromium": chromium, "onnxruntime": importlib.metadata.version("onnxruntime"), **found}


if __name__ == "__main__":
    main()
