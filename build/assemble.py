"""Assemble the site: web/ + third-party files + kernels + exported models → dist/.

``python build/assemble.py`` takes every export in models/; ``--model SLUG`` (more than once if wanted) takes only
those. ``--single-file FILE`` writes the site with its first model as one .html besides. The new dist/ is built beside
the old one and renamed over it at the end, so a killed run leaves the old site.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import budget
import compress
import dress
import kernels
import single
import snapshot
import vendor
from handbill import __version__
from handbill.manifest import NAME, Manifest, ManifestError

ROOT = Path(__file__).resolve().parent.parent

OWN_SUFFIXES = {".html", ".css", ".js", ".mjs", ".json", ".py", ".svg", ".png", ".ico", ".webmanifest"}
"""What of web/ is the site; the kernels' C sources, for example, stay at home."""

NPM_FILES = {"package.json", "package-lock.json"}
"""What of web/ only npm reads."""

OWN_FOLDERS = ["", "handbill", "places", "sessions"]


class AssembleError(Exception):
    """The site cannot be assembled. The message is a sentence for the reader."""


FAILURES = (
    AssembleError,
    *(dress.KioskError, kernels.KernelsError, single.SingleFileError, snapshot.SnapshotError, vendor.VendorError),
    ManifestError,
)
"""What the command answers with a sentence."""


def assemble(root: Path, slugs: list[str] | None = None, booth: Path | None = None) -> Path:
    """Build ``root``/dist from the checkout at ``root`` and return it.

    ``slugs`` names the exports to take, in the order the page offers them; without it, all of models/, smallest first.
    ``booth`` is a kiosk.toml by which the page is dressed for strangers. Raises AssembleError, VendorError,
    KernelsError, KioskError, SnapshotError or ManifestError with a sentence, and then leaves dist/ as it was.
    """
    dist = root / "dist"
    home = root / ".cache" / "site"
    with _alone(home):
        fresh, old = home / "fresh.partial", home / "old"
        _recover(dist, old)
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir()
        chosen = models(root, slugs)
        for target, source in vendor.gather(vendor.Inputs.of(root)).items():
            place(source, fresh / target)
        _own_files(root, fresh)
        if booth:
            _dress(root, fresh, booth)
        if any((root / "web" / "kernels").glob("*.c")):
            kernels.build(fresh / "kernels", root / ".cache" / "kernels")
        _licences(root, fresh)
        if (fresh / "pyodide").is_dir():
            snapshot.build(fresh, root / ".cache" / "snapshot")
        for slug, manifest in chosen.items():
            _model(root / "models" / slug, manifest, fresh / "models" / slug)
        compressed = root / ".cache" / "compressed"
        _precompressed(fresh, compressed)
        _site_json(fresh, chosen)
        _precompressed(fresh, compressed, ["site.json"])
        _swap(fresh, dist, old)
    return dist


def models(root: Path, slugs: list[str] | None) -> dict[str, Manifest]:
    """The manifests of the exports to ship, by slug. An export without manifest.json is not whole and not offered.

    Raises AssembleError for a slug that is not exported, ManifestError for a manifest that cannot be used.
    """
    folder = root / "models"
    whole = sorted(path.parent.name for path in folder.glob(f"*/{NAME}")) if folder.is_dir() else []
    for slug in slugs or []:
        if slug not in whole:
            near = difflib.get_close_matches(slug, whole, n=1)
            hint = f"did you mean {near[0]}?" if near else f"run python exporter/export.py {slug} first."
            raise AssembleError(f"models/{slug}/{NAME} does not exist, so {slug} cannot be shipped: {hint}")
    found = {slug: Manifest.from_json((folder / slug / NAME).read_text(encoding="utf-8")) for slug in slugs or whole}
    if slugs:
        return found
    return dict(sorted(found.items(), key=lambda item: (model_bytes(item[1]), item[0])))


def model_bytes(manifest: Manifest) -> int:
    """Bytes of all files of an export but its manifest."""
    return sum(entry.bytes for entry in manifest.files)


def place(source: Path, target: Path) -> None:
    """Hard-link ``source`` as ``target``; copy it where the file system cannot link (another disk, or no links)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copy2(source, target)


def _own_files(root: Path, fresh: Path) -> None:
    """Copy the page's own files. Never linked: an editor that writes in place would change a published site."""
    for folder in OWN_FOLDERS:
        for source in sorted((root / "web" / folder).glob("*")):
            ours = source.suffix in OWN_SUFFIXES and source.name not in NPM_FILES and not source.name.startswith(".")
            if source.is_file() and ours:
                target = fresh / folder / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)


def _dress(root: Path, fresh: Path, booth: Path) -> None:
    """Make the page the kiosk that ``booth`` describes."""
    page, table = fresh / "index.html", json.loads((fresh / "words.json").read_text(encoding="utf-8"))
    settings = dress.Kiosk.read(booth, set(table["decimal"]))
    attract = (root / "web" / "templates" / "attract.html").read_text(encoding="utf-8")
    page.write_text(dress.dress(page.read_text(encoding="utf-8"), attract, settings), encoding="utf-8")


def _licences(root: Path, fresh: Path) -> None:
    """Our licence, and those of third parties whose packages do not carry theirs (the rest come with the vendored)."""
    target = fresh / "licences"
    target.mkdir(exist_ok=True)
    shutil.copy2(root / "LICENSE", target / "handbill.txt")
    for source in sorted((root / "build" / "licences").glob("*.txt")):
        shutil.copy2(source, target / source.name)


def _model(folder: Path, manifest: Manifest, target: Path) -> None:
    """Link the files that the manifest lists, and the manifest. Sizes are looked at here, hashes by build/check.py."""
    for entry in manifest.files:
        source = folder / entry.name
        size = source.stat().st_size if source.is_file() else None
        if size != entry.bytes:
            found = "is missing" if size is None else f"has {size} bytes, not {entry.bytes}"
            raise AssembleError(f"{source} {found}: run python exporter/export.py {manifest.slug} again.")
        place(source, target / entry.name)
    shutil.copy2(folder / NAME, target / NAME)  # as the page's own files: small, and somebody may edit it in place


def _site_json(fresh: Path, chosen: dict[str, Manifest]) -> None:
    """Write site.json: the version, the models, what a first visit takes besides one of them, and size and sha256 of
    every file but the models' own and the compressed copies.

    A model's files are listed by its manifest; the manifest itself is listed here.
    """
    listed = [
        path
        for path in sorted(fresh.rglob("*"))
        if path.is_file() and (path.name == NAME or "models" not in path.relative_to(fresh).parts[:1])
        if path.suffix not in compress.ENCODINGS
    ]
    site = {
        "version": __version__,
        "models": [
            {"slug": slug, "title": manifest.title, "bytes": model_bytes(manifest)} for slug, manifest in chosen.items()
        ],
        "visit": budget.visit(fresh, [path.relative_to(fresh).as_posix() for path in listed]),
        "files": {
            path.relative_to(fresh).as_posix(): {"bytes": path.stat().st_size, "sha256": vendor.sha256_of(path)}
            for path in listed
        },
    }
    (fresh / "site.json").write_text(json.dumps(site, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _precompressed(fresh: Path, cache: Path, names: list[str] | None = None) -> None:
    """Compressed copies of everything that shrinks, or of the files ``names``."""
    files = {
        path: vendor.sha256_of(path)
        for path in (sorted(fresh.rglob("*")) if names is None else [fresh / name for name in names])
        if path.is_file() and compress.compressible(path)
    }
    compress.precompress(files, cache, place)


def _swap(fresh: Path, dist: Path, old: Path) -> None:
    """Put ``fresh`` in the place of ``dist``: two renames, between which ``_recover`` can still find the old site."""
    if dist.exists():
        dist.rename(old)
    fresh.rename(dist)
    if old.exists():
        shutil.rmtree(old)


def _recover(dist: Path, old: Path) -> None:
    """Bring the old site back if an earlier run was killed between the two renames, or finish its clearing up."""
    if old.exists():
        if dist.exists():
            shutil.rmtree(old)
        else:
            old.rename(dist)


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Let one assembly run at a time in a checkout; a second waits. The lock goes with the process that holds it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("assemble: waiting for another assembly of this checkout to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _single_file(dist: Path, target: Path) -> None:
    """Write the site and its first model to ``target`` and say how large it is."""
    models = json.loads((dist / "site.json").read_text(encoding="utf-8"))["models"]
    if not models:
        raise AssembleError(
            f"There is no model to put into {target}: run python exporter/export.py smollm2-135m first."
        )
    single.write(dist, models[0]["slug"], target)
    print(
        f"assemble: {target} is the site with {models[0]['slug']} in one file of {target.stat().st_size / 1e6:.1f} MB"
    )


def main() -> int:
    """The command ``python build/assemble.py [--model SLUG ...]``."""
    parser = argparse.ArgumentParser(description="Assemble the site into dist/ from web/, npm, PyPI and models/.")
    parser.add_argument("--model", action="append", metavar="SLUG", help="ship this export; default: all of models/")
    parser.add_argument("--kiosk", type=Path, metavar="TOML", help="dress the page as a kiosk (docs/kiosk.md)")
    parser.add_argument(
        "--single-file",
        type=Path,
        metavar="FILE",
        help="write one .html besides, with the first model: for a USB stick",
    )
    arguments = parser.parse_args()
    start = time.monotonic()
    try:
        dist = assemble(ROOT, arguments.model, arguments.kiosk)
        if arguments.single_file:
            _single_file(dist, arguments.single_file)
    except FAILURES as error:
        print(f"assemble: {error}", file=sys.stderr)
        return 1
    site = json.loads((dist / "site.json").read_text(encoding="utf-8"))
    offered = ", ".join(model["slug"] for model in site["models"])
    took = time.monotonic() - start
    print(f"assemble: dist/ has {len(site['files'])} files and the models {offered or '(none)'}; it took {took:.1f} s")
    if not site["models"]:
        print("assemble: models/ holds no export yet: run python exporter/export.py smollm2-135m, then assemble again.")
    if arguments.kiosk:
        print(f"assemble: dressed as the kiosk of {arguments.kiosk}. On the kiosk, beside python serve.py, run\n")
        print(dress.command_line("http://127.0.0.1:8000/"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
