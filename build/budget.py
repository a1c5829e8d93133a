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
)
"""What every visitor loads of the page itself, with all scripts at the top of dist/."""

PYTHON = ("python.mjs", "pyodide/")

RUNTIMES = {
    "cpu": ("sessions/cpu", "kernels/relaxed-threads.wasm"),
    "wasm": (
        "sessions/ort.js",
        "ort/ort.wasm.min.mjs",
        "ort/ort-wasm-simd-threaded.mjs",
        "ort/ort-wasm-simd-threaded.wasm",
    ),
    "webgpu": (
        "sessions/webgpu.js",
        "sessions/ort.js",
        "ort/ort.jspi.min.mjs",
        "ort/ort-wasm-simd-threaded.jspi.mjs",
        "ort/ort-wasm-simd-threaded.jspi.wasm",
    ),
}
"""How the names of the files begin by which a runtime differs, of the variant that a current Chromium takes."""

LIMITS = {"page": 400_000, "Python": 10_300_000, "cpu": 60_000, "wasm": 3_000_000, "webgpu": 3_500_000}
"""Bytes over the wire, measured at first and rounded up: growth beyond them is to be decided, not to happen."""


def wire_bytes(path: Path) -> int:
    """Bytes of the smallest form in which ``path`` is served (Brotli, gzip or as it is); 0 for an absent file."""
    forms = (path, path.with_name(path.name + ".br"), path.with_name(path.name + ".gz"))
    return min((form.stat().st_size for form in forms if form.is_file()), default=0)


def weigh(dist: Path) -> tuple[str, list[str]]:
    """A table of bytes over the wire for a whole site, and a sentence for each part that is over its limit."""
    site = json.loads((dist / "site.json").read_text(encoding="utf-8"))
    names = ["site.json", *site["files"]]
    top = [name for name in names if "/" not in name and name.endswith((".js", ".py"))]
    shared = {
        "page": top + [name for name in names if name.startswith(PAGE)],
        "Python": [name for name in names if name.startswith(PYTHON)],
    }
    own = {runtime: [name for name in names if name.startswith(starts)] for runtime, starts in RUNTIMES.items()}
    groups = {**shared, **own}
    size = {group: sum(wire_bytes(dist / name) for name in set(files)) for group, files in groups.items()}
    base = size["page"] + size["Python"]
    lines = [
        f"{'bytes over the wire':24} {'page':>11} {'Python':>11} {'runtime':>11} {'model':>13} {'first token':>13}"
    ]
    for entry in site["models"]:
        folder = dist / "models" / entry["slug"]
        manifest = Manifest.from_json((folder / NAME).read_text(encoding="utf-8"))
        for runtime in RUNTIMES:
            files = _model_files(manifest, runtime)
            if files:
                model = sum(wire_bytes(folder / name) for name in files)
                row = (size["page"], size["Python"], size[runtime], model, base + size[runtime] + model)
                cells = " ".join(f"{value:>{width},}" for value, width in zip(row, (11, 11, 11, 13, 13), strict=True))
                lines.append(f"{entry['slug'][:16] + ', ' + runtime:24} {cells}")
    over = [
        f"{group} takes {size[group]:,} bytes over the wire, more than its budget of {limit:,} (build/budget.py)."
        for group, limit in LIMITS.items()
        if size[group] > limit
    ]
    return "\n".join(lines), over


def _model_files(manifest: Manifest, runtime: str) -> list[str]:
    """Files of an export that ``runtime`` loads; [] if the model cannot run there."""
    graph = manifest.plan if runtime == "cpu" else manifest.graphs.get(runtime, "")
    return [NAME, graph, manifest.tokenizer, *manifest.weights] if graph else []
