"""What the processor allows: the products that a prompt takes, and how many a second a loop of nothing else gets done.

Activations of 16 bits (tests/bench/cpu/fidelity.py says what fewer cost) leave i32x4.dot_i16x8_s as the one
instruction of WebAssembly for the work; peak.c times it in the browser that the kernels are timed in.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

sys.path[:0] = [str(Path(__file__).resolve().parents[3] / "build")]

import kernels  # noqa: E402

SECONDS = 0.5
"""Of each measurement of the peak."""


def build(folder: Path) -> None:
    """Compile peak.c into ``folder``, with the flags of the kernels."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ziglang", "cc", *kernels.COMPILE, f"-mcpu={kernels.FEATURES}"]
    source = Path(__file__).with_name("peak.c")
    subprocess.run([*command, str(source), "-Wl,--no-entry", "-o", str(folder / "peak.wasm")], check=True)


def peak(page: Page, threads: int) -> float:
    """Products a second of ``threads`` workers at once, together."""
    speeds: list[float] = page.evaluate(
        """([threads, seconds]) => Promise.all(Array.from({length: threads}, () => new Promise((resolve, reject) => {
             const worker = new Worker("/bench/peak.js");
             worker.onmessage = ({data}) => { worker.terminate(); resolve(data); };
             worker.onerror = (event) => reject(new Error(event.message));
             worker.postMessage({seconds, start: Date.now() + 500});
           })))""",
        [threads, SECONDS],
    )
    return sum(speeds)


def products(plan: dict[str, Any], tokens: int) -> int:
    """Products of reading ``tokens`` into an empty KV cache and saying what follows the last, by plan.json's shapes."""
    total = 0
    for op in plan["ops"]:
        if op["op"] == "linear":
            weights = plan["weights"][op["weights"]]
            rows = tokens if plan["buffers"][op["x"][0]]["rows"] == "tokens" else 1
            total += rows * weights["rows"] * weights["columns"]
        if op["op"] == "attend":
            window = op["window"] or tokens
            seen = sum(min(position + 1, window) for position in range(tokens))
            total += 2 * seen * op["heads"] * plan["caches"][op["cache"]]["head_dim"]
    return total
