"""Save Python's memory after its start, so that the page restores it instead of starting Python at each visit.

Measured on the machine of the README: restoring takes 0.2 s where starting and importing jinja2 and handbill took 1.7.
Node runs the very WebAssembly module that the browser runs; Pyodide's ``_makeSnapshot`` copies its memory out.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent

SCRIPTS = [HERE / "snapshot.mjs", HERE / "snapshot_imports.py"]

PACKED = ("python", "handbill", "browser.py")
"""What of the site the snapshot holds; it does not travel a second time."""

MADE = ("snapshot.memory", "python_stdlib.zip", "pyodide-lock.json")

LONGEST = 500
"""Characters of a line worth showing: Node quotes the line that failed, and Pyodide's minified file is one line."""


class SnapshotError(Exception):
    """Python's memory cannot be saved. The message is a sentence and Node's words."""


def build(site: Path, cache: Path) -> None:
    """Put the files of ``MADE`` into ``site``/pyodide, and take out what the snapshot holds.

    They are made anew only if Pyodide, a wheel or a file of ours changed since they were put into ``cache``.
    Raises SnapshotError if Node fails; no half-written file is left.
    """
    kept = cache / _fingerprint(site)
    if not kept.is_dir():
        _make(site, kept)
    for name in MADE:
        target = site / "pyodide" / name
        target.unlink(missing_ok=True)  # It is linked to the vendored file.
        shutil.copy2(kept / name, target)
    for name in PACKED:
        path = site / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _fingerprint(site: Path) -> str:
    """Hex digest of everything that decides the memory."""
    packed = [path for name in (*PACKED, "pyodide") for path in [site / name, *(site / name).rglob("*")]]
    digest = hashlib.sha256()
    for path in sorted(packed) + SCRIPTS:
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _make(site: Path, kept: Path) -> None:
    print("snapshot: starting Python once to save its memory", flush=True)
    partial = kept.with_name(kept.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    log = partial / "node.log"  # Not a pipe: what Node writes as it dies would be cut off.
    try:
        with log.open("wb") as file:
            done = subprocess.run(["node", str(SCRIPTS[0]), str(site), str(partial)], stderr=file, check=False)
    except FileNotFoundError:
        raise SnapshotError("Python's memory cannot be saved because node is not installed: install Node 20.") from None
    if done.returncode != 0:
        lines = log.read_text(encoding="utf-8").splitlines()
        said = "\n".join(line for line in lines if line.strip() and len(line) < LONGEST)
        raise SnapshotError(f"Python's memory could not be saved (node build/snapshot.mjs). It said: {said}")
    partial.rename(kept)
