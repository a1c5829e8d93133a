"""What a visitor loads before the first token, by runtime: bytes over the wire, with the compressed copies in use."""

from __future__ import annotations

import json
from pathlib import Path

from handbill.manifest import NAME, Manifest

PAGE = (
    "index.html",
    "style.css",
    "words.json",
    "icon.svg",
    "site.json",
    "pyscript/",
    "micropython/",
    "tokenizers/",
    "hash/",
    "markdown/",
    "places/",
    "sessions/adapter.js",
    "sessions/choose.js",
    "sessions/enduring.js",
    "sessions/facts.js",
    "sessions/session.js",
)
"""What every visitor loads of the page itself, with all scripts at the top of dist/."""

PYTHON = ("python.mjs", "pyodide/")

RUNTIMES = {
    "cpu": ("sessions/cpu", "kernels/threads.wasm"),
    "wasm": (
        "sessions/ort.js",
        "ort/ort.wasm.min.mjs",
        "ort/ort-wasm-simd-threaded.mjs",
        "ort/ort-wasm-simd-threaded.wasm",
    ),
    "webgpu": (
        "sessions/graphics.js",
        "sessions/webgpu.js",
        "sessions/ort.js",
        "ort/ort.jspi.min.mjs",
        "ort/ort-wasm-simd-threaded.jspi.mjs",
        "ort/ort-wasm-simd-threaded.jspi.wasm",
    ),
    "webgpu, no JSPI": (
        "sessions/graphics.js",
        "sessions/webgpu.js",
        "sessions/ort.js",
        "ort/ort.webgpu.min.mjs",
        "ort/ort-wasm-simd-threaded.asyncify.mjs",
        "ort/ort-wasm-simd-threaded.asyncify.wasm",
    ),
}
"""How the names of the files begin by which a class of devices differs from the others; the first word is the runtime.
Our kernels are those that a current Chromium takes."""

BUILDS = {"cpu": "cpu", "wasm": "wasm", "webgpu": "jspi", "webgpu, no JSPI": "webgpu"}
"""What web/sessions/choose.js calls them: the build of ONNX Runtime Web, or "cpu"."""

LIMITS = {
    "page": 400_000,
    "Python": 10_300_000,
    "cpu": 60_000,
    "wasm": 3_000_000,
    "webgpu": 3_500_000,
    "webgpu, no JSPI": 5_000_000,
}
"""Bytes over the wire, measured at first and rounded up: growth beyond them is to be decided, not to happen."""


def wire_bytes(path: Path) -> int:
    """Bytes of the smallest form in which ``path`` is served (Brotli, gzip or as it is); 0 for an absent file."""
    forms = (path, path.with_name(path.name + ".br"), path.with_name(path.name + ".gz"))
    return min((form.stat().st_size for form in forms if form.is_file()), default=0)


def groups(dist: Path) -> dict[str, list[str]]:
    """Files of the site in ``dist``, less those of its models, by who loads them: the keys of LIMITS."""
    site = json.loads((dist / "site.json").read_text(encoding="utf-8"))
    return _grouped(["site.json", *site["files"]])


def visit(dist: Path, names: list[str]) -> dict[str, int]:
    """Bytes over the wire that a first visit to ``dist`` takes besides a model, of its files ``names``, by BUILDS."""
    size = {group: sum(wire_bytes(dist / name) for name in set(files)) for group, files in _grouped(names).items()}
    return {build: size["page"] + size["Python"] + size[device] for device, build in BUILDS.items()}


def _grouped(names: list[str]) -> dict[str, list[str]]:
    top = [name for name in names if "/" not in name and name.endswith((".js", ".py"))]
    own = {runtime: [name for name in names if name.startswith(starts)] for runtime, starts in RUNTIMES.items()}
    return {
        "page": top + [name for name in names if name.startswith(PAGE)],
        "Python": [name for name in names if name.startswith(PYTHON)],
        **own,
    }


def weigh(dist: Path) -> tuple[str, list[str]]:
    """A table of bytes over the wire for a whole site, and a sentence for each part that is over its limit."""
    site = json.loads((dist / "site.json").read_text(encoding="utf-8"))
    size = {group: sum(wire_bytes(dist / name) for name in set(files)) for group, files in groups(dist).items()}
    base = size["page"] + size["Python"]
    lines = [
        f"{'bytes over the wire':33} {'page':>11} {'Python':>11} {'runtime':>11} {'model':>13} {'first token':>13}"
    ]
    for entry in site["models"]:
        folder = dist / "models" / entry["slug"]
        manifest = Manifest.from_json((folder / NAME).read_text(encoding="utf-8"))
        for runtime in RUNTIMES:
            files = model_files(manifest, runtime)
            if files:
                model = sum(wire_bytes(folder / name) for name in files)
                row = (size["page"], size["Python"], size[runtime], model, base + size[runtime] + model)
                cells = " ".join(f"{value:>{width},}" for value, width in zip(row, (11, 11, 11, 13, 13), strict=True))
                lines.append(f"{entry['slug'][:16] + ', ' + runtime:33} {cells}")
    over = [
        f"{group} takes {size[group]:,} bytes over the wire, more than its budget of {limit:,} (build/budget.py)."
        for group, limit in LIMITS.items()
        if size[group] > limit
    ]
    return "\n".join(lines), over


def model_files(manifest: Manifest, device: str) -> list[str]:
    """Files of an export that a class of devices (a key of RUNTIMES) loads; [] if the model cannot run there."""
    runtime = device.partition(",")[0]
    graph = manifest.plan if runtime == "cpu" else manifest.graphs.get(runtime, "")
    return [NAME, graph, manifest.tokenizer, *manifest.weights] if graph else []
