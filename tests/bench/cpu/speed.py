"""Handbill's CPU session in headless Chromium against its peers, interleaved: python tests/bench/cpu/speed.py.

Needs the export (make model), the peers (npm ci --ignore-scripts in tests/bench/peers) and a quiet machine for about
fifteen minutes. Each round has another prompt, so that nobody's cache of prompts helps. Writes every raw figure to
tests/bench/results/cpu.json, from which report.py makes the table and the plot. With --model gemma-3-270m (exported
before) it runs that one, without transformers.js, and the files are called cpu-gemma-3-270m.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bound
import report
from playwright.sync_api import Page, sync_playwright
from q8 import FOLDER
from runtimes import MODEL, PEERS, ROOT, Run, file_type, in_browser, native, serve
from tokenizers import Tokenizer

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
NPM = ["@huggingface/transformers", "onnxruntime-web", "@wllama/wllama"]
SLOW_ROUNDS = 3
"""Rounds for what takes a minute each: wllama's long prompt, and the whole curve against context length."""

TASKS: dict[str, dict[str, Any]] = {
    "decode": {"stops": [50], "tokens": 32, "runtimes": [], "fewer": []},
    "prompt": {"stops": [518], "tokens": 1, "runtimes": [], "fewer": ["wllama"]},
    "cold turn": {"stops": [1040], "tokens": 1, "runtimes": ["ours"], "fewer": []},
    "second turn": {"stops": [1000, 1040], "tokens": 1, "runtimes": ["ours"], "fewer": []},
    "context": {
        "stops": [100, 512, 1024, 2048, 4096],
        "tokens": 16,
        "runtimes": ["native onnxruntime", "ours"],
        "fewer": ["native"],
    },
}
"""Task → the stops of its prompt, tokens to decode at each, who takes part (everybody, where nobody is named), and who,
by the first word, only in SLOW_ROUNDS rounds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default=MODEL.name, help="an exported model whose GGUF a package holds")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for cpu.json, cpu.md and cpu.svg")
    arguments = parser.parse_args()
    model = MODEL.with_name(arguments.model)
    if model == MODEL and not FOLDER.is_dir():
        print("Making the model of transformers.js, once", flush=True)
        subprocess.run([sys.executable, Path(__file__).with_name("q8.py")], check=True)
    ids = long_text(model)
    started, load = time.monotonic(), os.getloadavg()[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=ARGUMENTS
        )
        versions = find_versions(browser.version)
        runs = {"native onnxruntime": native(model)}
        opened, address = {}, serve(model)
        for name, (run, facts) in in_browser(browser, address, model).items():
            runs[name], opened[name] = run, facts
            print(f"{name}: opened in {facts['seconds']:.2f} s, {facts['runtime']}", flush=True)
        page = browser.new_page()
        page.goto(f"{address}/bench/blank.html")
        peaks: dict[int, list[float]] = {1: [], 2: []}
        figures = measure(runs, ids, arguments.rounds, lambda: peak(page, peaks))
        browser.close()
    manifest = json.loads((model / "manifest.json").read_text())
    result = {
        "model": manifest["title"],
        "gguf": file_type(model),
        "machine": f"{os.cpu_count()}-core x86 machine without a GPU",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "minutes": round((time.monotonic() - started) / 60, 1),
        "load": {"start": round(load, 2), "end": round(os.getloadavg()[0], 2)},
        "versions": versions,
        "opened": opened,
        "products": bound.products(json.loads((model / "plan.json").read_text()), TASKS["prompt"]["stops"][0]),
        "peak": {"one thread": peaks[1], "two threads": peaks[2]},
        "figures": figures,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "cpu" if model == MODEL else f"cpu-{model.name}"
    text = json.dumps(report.rounded(result), separators=(",", ":")) + "\n"
    (arguments.out / f"{name}.json").write_text(text, "utf-8")
    report.write(arguments.out, name)


def peak(page: Page, peaks: dict[int, list[float]]) -> None:
    """Add to ``peaks`` what one and two threads can multiply a second just now."""
    for threads, found in peaks.items():
        found.append(bound.peak(page, threads) / 1e9)
        print(f"peak, {threads} thread(s): {found[-1]:.1f} GMAC/s", flush=True)


def measure(
    runs: dict[str, Run], ids: list[int], rounds: int, between: Callable[[], None]
) -> dict[str, dict[str, list[Any]]]:
    """Task → runtime → the points of each round; ``between`` is called before each task."""
    figures: dict[str, dict[str, list[Any]]] = {}
    for number in range(rounds):
        for task, (stops, tokens, names, fewer) in ((task, each.values()) for task, each in TASKS.items()):
            between()
            for name in names or runs:
                if name.split()[0] in fewer and number >= SLOW_ROUNDS:
                    continue
                prompt = ids[number * 61 :][: stops[-1]]
                points = runs[name](prompt, stops, tokens)
                figures.setdefault(task, {}).setdefault(name, []).append(points)
                seconds, each = points[-1]["seconds"], points[-1]["milliseconds"]
                print(f"{number + 1}/{rounds} {task}, {name}: {seconds:.2f} s, {each:.1f} ms a token", flush=True)
    return figures


def long_text(model: Path) -> list[int]:
    """More than 4,500 token ids of prose: the text that the exporter measures perplexity on, repeated."""
    text = (ROOT / "exporter" / "text.txt").read_text("utf-8")
    ids: list[int] = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text * 6).ids
    assert len(ids) > 4500
    return ids


def find_versions(chromium: str) -> dict[str, str]:
    packages = {name: json.loads((PEERS / name / "package.json").read_text()) for name in NPM}
    found = {name: str(package["version"]) for name, package in packages.items()}
    return {"chromium": chromium, "onnxruntime": importlib.metadata.version("onnxruntime"), **found}


if __name__ == "__main__":
    main()
