"""Prove that dist/ is whole: ``python build/check.py``.

No file of ours names an address outside, every hash is right, every file that the page asks for is there, every
compressed copy is a copy, and the bytes that a visitor loads stay within a budget. Exit 1 with a sentence for each
fault; a table of the bytes if there is none.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from pathlib import Path

import brotli

import budget
import scan
from handbill.manifest import NAME, Manifest, ManifestError
from vendor import sha256_of

ROOT = Path(__file__).resolve().parent.parent

VENDORED = ("pyscript", "pyodide", "micropython", "ort", "tokenizers", "markdown", "python")
"""Folders of third-party files. Their bytes are pinned; only what they might fetch is looked at here."""

NAMESPACES = ("http://www.w3.org/",)
"""Names that look like addresses and are never fetched: SVG, XLink, MathML."""

OUTSIDE = {
    "cdn.jsdelivr.net": "where PyScript and Pyodide look for an interpreter or a package if none is given; "
    "index.html gives every interpreter, and scan.py refuses a config without one",
    "micropython.org": "MicroPython's package index, asked by mip.install only",
    "raw.githubusercontent.com": "the same, for packages named github:",
    "packages.pyscript.net": "named in the text of an error about an unknown package",
    "docs.pyscript.net": "named in the text of an error",
    "pyscript.github.io": "named in the text of an error",
    "developer.mozilla.org": "named in a docstring",
    "emscripten.org": "named in a comment",
    "github.com": "named in comments and in the text of errors",
    "bugs.chromium.org": "named in a comment",
    "web.dev": "named in the text of a warning",
    "www.w3.org": "namespaces",
    "0.0.0.0": "base for parsing a relative address",
}
"""Hosts that third-party files name, and why none of them is asked. A host that is not here is a fault."""

ABSENT = {
    **dict.fromkeys(("codemirror", "codemirror_commands", "codemirror_lang-python"), "loaded by an editor on the page"),
    **dict.fromkeys(("codemirror_language", "codemirror_state", "codemirror_view"), "loaded by an editor on the page"),
    **dict.fromkeys(("xterm", "xterm-readline", "xterm_addon-fit"), "loaded by a terminal on the page"),
    **dict.fromkeys(("xterm_addon-web-links", "mpy", "py"), "loaded by a terminal on the page"),
    "toml": "loaded for a TOML config; ours are JSON",
    "zip": "loaded to unpack archives named in a config; ours name none",
    "pyodide_graph": "loaded for packages named in a config; ours name none",
}
"""Chunks that PyScript can import and that do not travel (names without their hash), and why they are never asked for.
Its plugins (donkey, py-editor, py-game, py-terminal) must travel: core.js loads every one of them at the start."""

_ADDRESS = re.compile(r"(?:https?|wss?):\\?/\\?/([A-Za-z0-9_.-]+)")
_FETCHABLE = re.compile(r"^(?:(?:https?|wss?|ftp):)?//[A-Za-z0-9*]", re.IGNORECASE)
_CHUNK = re.compile(r"""["'`]\./(([A-Za-z0-9_.-]+?)(?:-[A-Za-z0-9_-]{8})?\.m?js)["'`]""")
_PATH = re.compile(r"(?:\.{1,2}/)*(?:[A-Za-z0-9_*@.-]+/)*(?:[A-Za-z0-9_*@.-]+)?")
_KNOWN = {".html", ".css", ".js", ".mjs", ".py", ".wasm", ".json", ".whl", ".zip", ".svg", ".png", ".ico", ".onnx"}


def check(dist: Path) -> list[str]:
    """The faults of the site in ``dist``, a sentence each; [] if it is whole."""
    try:
        site = json.loads((dist / "site.json").read_text(encoding="utf-8"))
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in site["files"].items()}
        slugs = [str(model["slug"]) for model in site["models"]]
    except FileNotFoundError:
        return [f"{dist}/site.json is missing: run python build/assemble.py."]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{dist}/site.json cannot be read ({error!r}): run python build/assemble.py."]
    faults = _models(dist, slugs, listed)
    faults += _hashes(dist, listed)
    faults += _strays(dist, listed)
    faults += _copies(dist)
    for name in sorted(listed):
        path = dist / name
        if path.is_file():
            faults += _third_party(dist, name) if name.startswith(VENDORED) else _own(dist, name)
    return faults


def _models(dist: Path, slugs: list[str], listed: dict[str, tuple[int, str]]) -> list[str]:
    """Faults of the manifests; the files of good ones are added to ``listed``."""
    if not slugs:
        return ["dist/ holds no model: run python exporter/export.py smollm2-135m and python build/assemble.py."]
    faults = []
    for slug in slugs:
        path = dist / "models" / slug / NAME
        try:
            manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            faults.append(f"models/{slug}/{NAME} is missing: run python build/assemble.py.")
        except (ManifestError, UnicodeDecodeError) as error:
            faults.append(f"models/{slug}/{NAME} cannot be used: {error}")
        else:
            if manifest.slug != slug:
                faults.append(f"models/{slug}/{NAME} is the manifest of {manifest.slug}.")
            listed.update({f"models/{slug}/{entry.name}": (entry.bytes, entry.sha256) for entry in manifest.files})
    return faults


def _hashes(dist: Path, listed: dict[str, tuple[int, str]]) -> list[str]:
    """Every listed file is there with its size and sha256, and is a file of dist/ itself."""
    faults = []
    for name, (size, sha256) in sorted(listed.items()):
        path = dist / name
        if not path.is_file() or path.is_symlink():
            faults.append(f"{name} is missing from dist/: run python build/assemble.py.")
        elif path.stat().st_size != size or sha256_of(path) != sha256:
            faults.append(f"{name} is not what was put there (size or sha256 differs): run python build/assemble.py.")
    return faults


def _strays(dist: Path, listed: dict[str, tuple[int, str]]) -> list[str]:
    """Files that nothing lists have no business in a published folder."""
    known = {"site.json", *listed}
    known |= {name + suffix for name in known for suffix in (".br", ".gz")}
    present = (path for path in sorted(dist.rglob("*")) if not path.is_dir() or path.is_symlink())
    names = (path.relative_to(dist).as_posix() for path in present)
    return [
        f"{name} is in dist/, but nothing lists it: run python build/assemble.py."
        for name in names
        if name not in known
    ]


def _copies(dist: Path) -> list[str]:
    """Every compressed copy unpacks to the file beside it: a server sends it in that file's place."""
    faults = []
    for path in sorted([*dist.rglob("*.br"), *dist.rglob("*.gz")]):
        name = path.relative_to(dist).as_posix()
        try:
            data = brotli.decompress(path.read_bytes()) if path.suffix == ".br" else gzip.decompress(path.read_bytes())
        except (brotli.error, OSError, EOFError) as error:
            faults.append(
                f"{name} cannot be unpacked ({error}): delete .cache/compressed and run python build/assemble.py."
            )
            continue
        original = path.with_suffix("")
        if not original.is_file() or original.read_bytes() != data:
            faults.append(
                f"{name} does not unpack to {original.name}: delete .cache/compressed and run python build/assemble.py."
            )
    return faults


def _own(dist: Path, name: str) -> list[str]:
    """Faults in what one of our files refers to."""
    try:
        found = scan.mentions(dist / name)
    except scan.ScanError as error:
        return [f"{error}."]
    faults = []
    for mention in found:
        text = mention.text.strip()
        if _FETCHABLE.match(text) or any(not match.group().startswith(NAMESPACES) for match in _ADDRESS.finditer(text)):
            if not text.startswith(NAMESPACES):
                faults.append(f"{name}, line {mention.line}: names an address outside, {text[:80]!r}.")
        elif (mention.must_resolve or _looks_like_path(text)) and not _resolves(dist, name, text):
            faults.append(f"{name}, line {mention.line}: asks for {text!r}, which is not in dist/.")
    return faults


def _looks_like_path(text: str) -> bool:
    """Whether a string is meant as a path of the site: ``./x``, ``folder/``, or ``folder/file`` with a known suffix."""
    if not _PATH.fullmatch(text) or "/" not in text:
        return False
    return text.startswith(("./", "../")) or text.endswith("/") or Path(text).suffix in _KNOWN


def _resolves(dist: Path, name: str, text: str) -> bool:
    """Whether ``text`` (``*`` for what is put in at run time) is found from the file's folder or from the root."""
    if text.startswith(("data:", "blob:")):
        return True
    bare = re.split(r"[?#]", text, maxsplit=1)[0]
    if bare.startswith("*"):  # some base, then a path
        bare = "**/" + bare.lstrip("*/")
    for base in (dist, (dist / name).parent):
        place = (base / bare.split("*")[0]).resolve()
        if "*" not in bare and place.exists() and place.is_relative_to(dist.resolve()):
            return True
        if "*" in bare and any(base.glob(bare.removeprefix("./"))):
            return True
    return False


def _third_party(dist: Path, name: str) -> list[str]:
    """Hosts and chunks that a third-party file names without our knowing why."""
    path = dist / name
    if path.suffix not in {".js", ".mjs", ".css"}:
        return []
    text = path.read_text(encoding="utf-8")
    hosts = sorted({match.group(1) for match in _ADDRESS.finditer(text)} - set(OUTSIDE))
    faults = [
        f"{name} names the host {host}: find out whether it is asked, and say so in build/check.py." for host in hosts
    ]
    if name.startswith("pyscript/"):
        for chunk, stem in sorted(set(_CHUNK.findall(text))):
            if not (path.parent / chunk).is_file() and stem not in ABSENT:
                faults.append(f"{name} imports {chunk}, which is not in build/vendor.json nor known to be unneeded.")
    return faults


def main() -> int:
    """The command ``python build/check.py [--dir dist]``."""
    parser = argparse.ArgumentParser(description="Check that the assembled site is whole and within its size budget.")
    parser.add_argument("--dir", type=Path, default=ROOT / "dist", help="default: dist/")
    arguments = parser.parse_args()
    faults = check(arguments.dir)
    if not faults:
        table, faults = budget.weigh(arguments.dir)
        print(table)
    for fault in faults:
        print(f"check: {fault}", file=sys.stderr)
    if not faults:
        print("check: dist/ is whole: every hash right, every file there, nothing asked of the outside")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
