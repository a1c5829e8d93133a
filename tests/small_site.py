"""A checkout in miniature for the tests of build/: a page, one vendored file already in the cache, one tiny export."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import assemble
import vendor
from handbill.manifest import File, Licence, Manifest
from samples import make_manifest

PAGE = '<!doctype html><link rel="stylesheet" href="style.css"><script src="app.js"></script>'
LIBRARY = b"export const version = 1;\n" * 100


def checkout(root: Path, slugs: tuple[str, ...] = ("tiny",)) -> Path:
    """Write the miniature into ``root`` and return it. Nothing in it needs the network."""
    write(root / "web" / "index.html", PAGE)
    write(root / "web" / "style.css", "body { color: green }\n")
    write(root / "web" / "app.js", 'import { version } from "./ort/library.mjs";\nconsole.log(version);\n')
    write(root / "web" / "handbill" / "core.py", '"""Nothing."""\n')
    write(root / "web" / "sessions" / "one.js", "export {};\n")
    write(root / "web" / "package.json", "{}")
    write(root / "web" / "package-lock.json", "{}")
    write(root / "build" / "requirements.txt", "")
    write(root / "build" / "licences" / "library.txt", "Do as you like.\n")
    write(root / "LICENSE", "Apache-2.0\n")
    pin = vendor.Pin("ort/library.mjs", "npm:library/library.mjs", hashlib.sha256(LIBRARY).hexdigest())
    vendor.write_pins(root / "build" / "vendor.json", [pin])
    inputs = vendor.Inputs.of(root)
    write(inputs.cache / inputs.key() / pin.target, LIBRARY.decode())
    for slug in slugs:
        export(root, slug)
    return root


def write(path: Path, text: str) -> Path:
    """Write ``text``, making the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def export(root: Path, slug: str, weights: bytes = bytes(range(256)) * 16) -> Manifest:
    """An export in ``root``/models that is whole as far as its manifest tells; no runtime could open it."""
    contents = {
        "model.onnx": b"graph" * 1000,
        "weights-01.bin": weights,
        "tokenizer.json": json.dumps({"model": {"vocab": {str(i): i for i in range(500)}}}).encode(),
    }
    folder = root / "models" / slug
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        files.append(File(name, len(data), hashlib.sha256(data).hexdigest()))
    manifest = make_manifest(
        slug=slug,
        title=slug.title(),
        licence=Licence("Apache-2.0"),
        graphs={"wasm": "model.onnx"},
        weights=["weights-01.bin"],
        plan="",
        files=files,
    )
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def assembled(root: Path) -> Path:
    """The miniature's dist/, assembled."""
    return assemble.assemble(checkout(root))
