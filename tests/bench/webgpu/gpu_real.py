"""The real model on WebGPU and what its one set of weights costs: python tests/bench/webgpu/gpu_real.py.

Adds ``real`` and ``weights`` to results/webgpu.json and writes webgpu.md anew. SwiftShader computes a token of SmolLM2
in half a minute or more, so it decodes two. Needs dist/ (make site) and models/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in ("web", "tests")), str(Path(__file__).parent)]

import gpu_report  # noqa: E402

import gpu_page  # noqa: E402
import tabs  # noqa: E402
import tiny_exports  # noqa: E402
from exporter.graph import load  # noqa: E402
from exporter.native import NativeSession, RustTokenizer  # noqa: E402
from exporter.verify import TEXT, device_check  # noqa: E402
from handbill.manifest import NAME, Manifest  # noqa: E402

TOKENS = 128
"""Of text, on which the two graphs are compared."""

PROMPT = "The capital of France is"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, default=ROOT / "models" / "smollm2-135m", help="an exported folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        exact = shutil.copytree(arguments.export, Path(scratch) / "exact")
        tiny_exports.compute_exactly(exact)
        ids = RustTokenizer.open(exact).encode(TEXT.read_text("utf-8"))[:TOKENS]
        found = {"weights": weights(arguments.export) | difference(exact, ids), "real": asked(exact, Path(scratch))}
    result = gpu_report.load() | found
    (gpu_report.RESULTS / "webgpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (gpu_report.RESULTS / "webgpu.md").write_text(gpu_report.markdown(result), encoding="utf-8")
    print(json.dumps(found, indent=1))


def weights(export: Path) -> dict[str, Any]:
    """Bytes of the shards that all devices read, and of what each would read had it files of its own.

    Those of ONNX Runtime would hold what it makes of the shards' halves when it opens a graph: scales in float32, and
    float32 zero points (WASM) or offsets (WebGPU). Our kernels read the halves as they are.
    """
    manifest = Manifest.from_json((export / NAME).read_text(encoding="utf-8"))
    shards = sum(entry.bytes for entry in manifest.files if entry.name in manifest.weights)
    halves = 0
    for tensor in load(export / manifest.graphs["webgpu"]).graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            halves += int(np.prod(tensor.dims))
    own = {"cpu": shards, "wasm": shards + 2 * halves, "webgpu": shards + 2 * halves}
    graphs = {name: (export / file).stat().st_size for name, file in manifest.graphs.items()}
    return {"title": manifest.title, "shards": shards, "own": own, "graphs": graphs}


def difference(exact: Path, ids: list[int]) -> dict[str, Any]:
    """How far the logits of the graph for WebGPU are from those of the other one: natively, at accuracy_level 0."""
    rows = []
    for graph in ("wasm", "webgpu"):
        session = NativeSession.open(exact, context=len(ids), graph=graph)
        rows.append(session.logits(ids, len(ids)))
        session.close()
    wanted, found = rows
    return {
        "tokens": len(ids),
        "largest_logit": round(float(np.abs(wanted).max()), 2),
        "largest_difference": float(f"{np.abs(found - wanted).max():.1e}"),
        "same_likeliest": float((found.argmax(1) == wanted.argmax(1)).mean()),
    }


def asked(exact: Path, scratch: Path) -> dict[str, Any]:
    """What a decoded token asks of WebGPU."""
    manifest = Manifest.from_json((exact / NAME).read_text(encoding="utf-8"))
    ids = RustTokenizer.open(exact).encode(PROMPT)
    session = NativeSession.open(exact, context=64, graph="webgpu")
    check = device_check(ids, session.logits(ids)[0])
    session.close()
    home = gpu_page.site(scratch / "site", tabs.DIST, {"real": exact})
    with sync_playwright() as playwright:
        browser = tabs.launch(playwright, gpu=True)
        version = browser.version
        with gpu_page.opened(browser, home) as page:
            page.page.set_default_timeout(3_600_000)
            counts = page.js(
                """const choice = { context: 64, chunk: 24 };
                const session = await open("/models/real", "webgpu", choice, { check });
                const answers = await run(session, [{ ids }, { greedy: 2 }]);
                await session.close();
                return answers[1].counts;""",
                check=vars(check),
                ids=ids,
            )
        browser.close()
    nodes = len(load(exact / manifest.graphs["webgpu"]).graph.node)
    return {"title": manifest.title, "chromium": version, "nodes": nodes, **counts}


if __name__ == "__main__":
    main()
