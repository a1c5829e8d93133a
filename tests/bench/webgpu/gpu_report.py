"""The WebGPU bench's figures as words: python tests/bench/webgpu/gpu_report.py makes webgpu.md of webgpu.json."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "tests" / "bench" / "results"
DEVICES = {
    "webgpu": "graphics chip (WebGPU), with shader-f16 and without",
    "webgpu, no JSPI": "graphics chip, where WebAssembly cannot suspend",
    "cpu": "processor, our kernels",
    "wasm": "processor, ORT Web's WASM",
}
NOTES = """
WebLLM is not measured: it runs models compiled beforehand, and neither its libraries nor its weights are in a package
registry.

Graph capture (`enableGraphCapture` of ORT Web 1.30) is not used: such a session binds its tensors once, at its first
run (`inputOutputBound` in its JavaScript is never set back then), so one that has captured a step of one token cannot
prefill, and a second session would hold the weights twice.

Half precision: no f16 graph. No adapter at hand has `shader-f16`, so nothing could prove one right, and Gemma 3 is
known to overflow. Weights are 4 bits either way; what f16 would halve is the KV cache.

Soft-capped attention (Gemma 2): ORT Web 1.30 reads GroupQueryAttention's `softcap` on WebGPU and does not apply it; on
the tiny gemma2 logits are then off by 4. It does add `attention_bias`, and what a cap changes of the scores is such a
bias (exporter/webgpu.py): logits are native's within 2e-6. On the tiny gemma2's three layers that takes 96 dispatches
a token instead of 59, and of what lies in the KV cache keys are read four times and written twice, values read once
(counted in the graph, where they are copied at every token: tests/test_webgpu_graph.py). For {title} that is
{lengths}; in brackets: both read once.
"""
SOFT_CAPPED = "gemma-2-2b-it"
LENGTHS = (100, 1000, 4000)
OF_THE_REAL = ("real", "weights")
"""Keys of webgpu.json that gpu_real.py writes."""

REAL = """
The real {title} ({nodes:,} nodes; gpu_real.py, software): a decoded token takes {dispatches:,} dispatches in {submits}
submits, {mappings} mapping of {mapped:,} bytes and {buffers} new buffers; {copied:,} bytes are copied.
"""
WEIGHTS = """
One set of weights for all devices ({title}): shards of {shards:,} bytes, whose scales and minima are halves, and a
graph for each runtime ({graphs}). Had each runtime files of its own, with what it makes of the halves when it opens
the graph (float32 scales, and float32 zero points or offsets; our kernels keep the halves), those would be
{own} bytes: a site for all devices would hold {separate:,} bytes,
and a graphics chip would download {more:.1f} % more. The graph for WebGPU adds offsets by sums: natively at
accuracy_level 0, over {tokens} tokens of text, its logits differ by {largest_difference:.1e} at most from the other
graph's, whose largest is {largest_logit}; the likeliest token is the same at {same:.1f} % of the positions.
"""
COUNTED = {
    "dispatches": "dispatches", "submits": "submits", "mappings": "mappings", "mapped": "bytes read back",
    "buffers": "buffers made",
}  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """The whole report."""
    software = "swiftshader" in result["adapter"].lower()
    lines = [
        f"# {result['title']}{' (tiny, random weights)' if software else ''} on WebGPU",
        "",
        f"Chromium {result['chromium']}, adapter: {result['adapter'] or 'none'}, {result['date']}."
        + (" In software: what WebGPU is asked for is as on a graphics chip, the times are not." if software else ""),
        "",
        f"| a decoded token | context | {' | '.join(COUNTED.values())} | ms | first token, s | load, s |",
        f"|---|---|{'---|' * len(COUNTED)}---|---|---|",
    ]
    for name, found in result["figures"].items():
        for context, point in found["at"].items():
            counted = " | ".join(f"{point[key]:,}" for key in COUNTED)
            times = f"{point['milliseconds']:.1f} | {point['seconds']:.2f} | {found['opened']['seconds']:.1f}"
            lines.append(f"| {name} | {int(context):,} | {counted} | {times} |")
    lines += [
        "",
        "What a first visit downloads, in bytes over the wire; tests/test_page_choice.py compares it with what a page "
        "asks for. All devices read the same weight shards.",
        "",
        "| model | device | graph's nodes | page and Python | runtime | model | together |",
        "|---|---|---|---|---|---|---|",
    ]
    for visit in result["visits"]:
        parts = [visit[part] for part in ("page", "runtime", "model")]
        sizes = " | ".join(f"{size:,}" for size in [*parts, sum(parts)])
        lines.append(f"| {visit['title']} | {DEVICES[visit['device']]} | {visit['nodes'] or 'plan'} | {sizes} |")
    return "\n".join(lines) + "\n" + _real(result) + NOTES.format(**_soft_capped())


def _soft_capped() -> dict[str, str]:
    """Bytes of KV cache that a soft-capped model's token moves, by length, from its recipe."""
    recipe = tomllib.loads((ROOT / "exporter" / "recipes.toml").read_text("utf-8"))[SOFT_CAPPED]
    config = recipe["config"]
    keys = 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    said = [f"{7 * keys * n / 1e9:.2f} GB a token at {n:,} tokens ({2 * keys * n / 1e9:.2f})" for n in LENGTHS]
    return {"title": recipe["title"], "lengths": ", ".join(said)}


def _real(result: dict[str, Any]) -> str:
    """What gpu_real.py has measured; nothing where it has not run."""
    text = ""
    if "real" in result:
        text += REAL.format(**result["real"])
    if "weights" in result:
        found = result["weights"]
        named = {
            "graphs": ", ".join(f"{name} {size:,} bytes" for name, size in found["graphs"].items()),
            "own": ", ".join(f"{name} {size:,}" for name, size in found["own"].items()),
            "separate": sum(found["own"].values()),
            "more": 100 * (found["own"]["webgpu"] / found["shards"] - 1),
            "same": 100 * found["same_likeliest"],
        }
        text += WEIGHTS.format(**found | named)
    return text


def load() -> dict[str, Any]:
    """The committed figures."""
    found: dict[str, Any] = json.loads((RESULTS / "webgpu.json").read_text("utf-8"))
    return found


if __name__ == "__main__":
    (RESULTS / "webgpu.md").write_text(markdown(load()), encoding="utf-8")
