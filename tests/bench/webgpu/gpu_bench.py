"""Handbill's WebGPU session against transformers.js in the same browser: python tests/bench/webgpu/gpu_bench.py.

On a machine with a graphics chip: ``make site``, ``npm ci --ignore-scripts`` in tests/bench/peers, then this. Without
one, ``--swiftshader`` runs a tiny random model in software: what WebGPU is asked for is the same there, the times mean
nothing. Writes webgpu.json and webgpu.md (gpu_report.py) into tests/bench/results.

WebLLM is not among the peers: it runs models compiled beforehand, and neither the compiled libraries nor the converted
weights are in a package registry.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("", "web", "build", "tests", "tests/bench", "tests/bench/webgpu")
sys.path[:0] = [str(ROOT / name) for name in FOLDERS]

import gpu_report  # noqa: E402
import peer_model  # noqa: E402

import budget  # noqa: E402
import gpu_page  # noqa: E402
import tabs  # noqa: E402
from exporter.graph import load  # noqa: E402
from exporter.verify import TEXT  # noqa: E402
from handbill.manifest import NAME, Manifest  # noqa: E402
from links import link  # noqa: E402

PEERS = ROOT / "tests" / "bench" / "peers" / "node_modules"
REAL_GPU = ["--enable-unsafe-webgpu", "--enable-features=Vulkan"]
BLANK = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>bench</title>
<script type="importmap">{"imports": {
  "onnxruntime-web/webgpu": "/peers/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs",
  "onnxruntime-common": "/peers/onnxruntime-common/dist/esm/index.js"
}}</script>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="smollm2-135m", help="as for exporter/export.py")
    parser.add_argument("--export", type=Path, default=ROOT / "models" / "smollm2-135m", help="its exported folder")
    parser.add_argument("--contexts", type=int, nargs="+", default=[100, 1000, 4000])
    parser.add_argument("--tokens", type=int, default=32, help="tokens to decode at each context")
    parser.add_argument("--swiftshader", action="store_true", help="a tiny model in software: counts, not times")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache", help="for checkpoint and the peer's model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.swiftshader:
            arguments.checkpoint, arguments.export = tiny(Path(scratch), max(arguments.contexts) + arguments.tokens)
            arguments.cache = Path(scratch) / "cache"
        result = measure(arguments)
    result |= {key: value for key, value in gpu_report.load().items() if key in gpu_report.OF_THE_REAL}
    (gpu_report.RESULTS / "webgpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (gpu_report.RESULTS / "webgpu.md").write_text(gpu_report.markdown(result), encoding="utf-8")
    print(gpu_report.markdown(result))


def tiny(scratch: Path, context: int) -> tuple[str, Path]:
    """Checkpoint and export of a tiny random llama of ``context`` tokens."""
    import tiny_checkpoint
    from exporter.export import export

    checkpoint = tiny_checkpoint.save("llama", scratch / "llama")
    described = json.loads((checkpoint / "config.json").read_text("utf-8")) | {"max_position_embeddings": context}
    (checkpoint / "config.json").write_text(json.dumps(described), encoding="utf-8")
    return str(checkpoint), export(str(checkpoint), scratch / "models", scratch / "cache", context=context, quant="rtn")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of the report."""
    manifest = Manifest.from_json((arguments.export / NAME).read_text(encoding="utf-8"))
    ids = prompt(arguments.export, max(arguments.contexts))
    peer = peer_model.make(arguments.checkpoint, arguments.cache / "bench" / f"{manifest.slug}-q4", arguments.cache)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        home = site(Path(scratch) / "site", arguments.export, peer)
        browser = launch(playwright, arguments.swiftshader)
        figures = {}
        with tabs.serving(home) as address:
            for name, script in (("handbill", "ours.js"), ("transformers.js q4", "transformers.js")):
                figures[name] = run(browser, address, script, ids, arguments.contexts, arguments.tokens)
            adapter = describe(browser, address)
        version = browser.version
        browser.close()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "adapter": adapter,
        "chromium": version,
        "title": manifest.title,
        "contexts": arguments.contexts,
        "figures": figures,
        "visits": [visit for slug in sorted((tabs.DIST / "models").iterdir()) for visit in visits(slug)],
    }


def launch(playwright: Any, swiftshader: bool) -> Browser:
    """Chromium on SwiftShader, or on the machine's own graphics chip."""
    if swiftshader:
        return tabs.launch(playwright, gpu=True)
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium")
    return playwright.chromium.launch(executable_path=executable, args=tabs.ARGUMENTS + REAL_GPU)


def prompt(export: Path, tokens: int) -> list[int]:
    """``tokens`` ids of prose, by the export's own tokenizer."""
    from exporter.native import RustTokenizer

    ids = RustTokenizer.open(export).encode(TEXT.read_text("utf-8"))
    return (ids * (tokens // len(ids) + 1))[:tokens]


def site(home: Path, export: Path, peer: Path) -> Path:
    """The bare page of the tests, and beside it the bench's scripts, the peers and the peer's model."""
    gpu_page.site(home, tabs.DIST, {"model": export})
    for script in Path(__file__).parent.glob("*.js"):
        shutil.copy2(script, home / script.name)
    for package in ("@huggingface/transformers", "onnxruntime-web", "onnxruntime-common"):
        shutil.copytree(PEERS / package / "dist", home / "peers" / package / "dist", copy_function=link)
    shutil.copytree(peer, home / "q4" / "model", copy_function=link)
    (home / "index.html").write_text(BLANK, encoding="utf-8")
    return home


def run(
    browser: Browser, address: str, script: str, ids: list[int], contexts: list[int], tokens: int
) -> dict[str, Any]:
    """``script`` in a page of its own: what opening took, and {context: what its prompt and its tokens took}."""
    page = browser.new_page()
    page.set_default_timeout(3_600_000)
    page.goto(address)
    opened = page.evaluate("async (script) => (self.runtime = await import(`/${script}`)).begin()", script)
    found = {}
    for context in contexts:
        asked = {"ids": ids[:context], "tokens": tokens}
        page.evaluate("(asked) => self.runtime.run({ ...asked, tokens: 3 })", asked)  # Shaders are compiled here.
        found[str(context)] = page.evaluate("(asked) => self.runtime.run(asked)", asked)
        print(script, context, found[str(context)], flush=True)
    page.close()
    return {"opened": opened, "at": found}


def describe(browser: Browser, address: str) -> str:
    """The graphics adapter in words."""
    page = browser.new_page()
    page.goto(address)
    info = page.evaluate(
        """async () => {
            const info = (await navigator.gpu?.requestAdapter())?.info;
            return info ? [info.vendor, info.architecture, info.device, info.description] : [];
        }"""
    )
    page.close()
    return " ".join(part for part in info if part)


def visits(export: Path) -> list[dict[str, Any]]:
    """For each class of devices: nodes of the graph of the model in ``export`` (in dist/), bytes of a first visit."""
    manifest = Manifest.from_json((export / NAME).read_text(encoding="utf-8"))
    groups = {name: {tabs.DIST / file for file in files} for name, files in budget.groups(tabs.DIST).items()}
    found = []
    for device in budget.RUNTIMES:
        of_model = {export / name for name in budget.model_files(manifest, device)}
        if of_model:
            parts = {"page": groups["page"] | groups["Python"], "runtime": groups[device], "model": of_model}
            size = {part: sum(map(budget.wire_bytes, files)) for part, files in parts.items()}
            graph = manifest.graphs.get(device.partition(",")[0])
            nodes = len(load(export / graph).graph.node) if graph else None
            found.append({"title": manifest.title, "device": device, "nodes": nodes, **size})
    return found


if __name__ == "__main__":
    main()
