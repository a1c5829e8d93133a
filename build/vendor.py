"""Gather the third-party files that the page ships: pinned by version, by the registry's hash and by our own.

``npm ci`` (web/package.json and its lock) and ``pip download --require-hashes`` (build/requirements.txt) bring the
packages; build/vendor.json lists the few files the page needs of them, where they go in dist/ and the sha256 of each.
What was gathered stays in .cache/vendor/<key>/, laid out as in dist/, so that a second run needs no network.

After a version change: ``python build/vendor.py --pin`` writes the new hashes into vendor.json, for review in git.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PIP_PLATFORM = ["--platform", "manylinux2014_x86_64", "--implementation", "cp", "--python-version", "3.11"]
"""One platform for everybody: which wheel pip picks, and so its hash, must not depend on who builds."""


class VendorError(Exception):
    """A third-party file that cannot be had or is not what was pinned. The message is a sentence."""


@dataclass(frozen=True)
class Inputs:
    """The committed files that decide what is gathered, and the folder where it stays."""

    packages: Path
    lock: Path
    requirements: Path
    pins: Path
    cache: Path

    @classmethod
    def of(cls, root: Path) -> Inputs:
        """The inputs of a checkout at ``root``."""
        return cls(
            packages=root / "web" / "package.json",
            lock=root / "web" / "package-lock.json",
            requirements=root / "build" / "requirements.txt",
            pins=root / "build" / "vendor.json",
            cache=root / ".cache" / "vendor",
        )

    def key(self) -> str:
        """Name of the cached folder: it changes with every input."""
        digest = hashlib.sha256()
        for path in (self.packages, self.lock, self.requirements, self.pins):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Pin:
    """One shipped file: ``source`` is ``npm:<package>/<path>`` or ``pypi:<wheel>``; sha256 in hex."""

    target: str
    source: str
    sha256: str


def read_pins(path: Path) -> list[Pin]:
    """The entries of vendor.json, in its order."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [Pin(target=entry["to"], source=entry["from"], sha256=entry["sha256"]) for entry in entries]


def write_pins(path: Path, pins: list[Pin]) -> None:
    """Write vendor.json with one line a file, so that a changed pin is one changed line."""
    lines = [json.dumps({"to": pin.target, "from": pin.source, "sha256": pin.sha256}) for pin in pins]
    beside = path.with_name(path.name + ".partial")
    beside.write_text("[\n  " + ",\n  ".join(lines) + "\n]\n", encoding="utf-8")
    beside.replace(path)


def gather(inputs: Inputs) -> dict[str, Path]:
    """The vendored files by their path in dist/, every one checked against its pinned sha256.

    Raises VendorError if a registry cannot be reached, a package is not what its lock says, or a byte has changed.
    """
    pins = read_pins(inputs.pins)
    home = inputs.cache / inputs.key()
    if not home.is_dir():
        _fill(inputs, pins, home)
    for pin in pins:
        check(home / pin.target, pin)
    return {pin.target: home / pin.target for pin in pins}


def check(path: Path, pin: Pin) -> None:
    """Raise VendorError unless ``path`` holds exactly the pinned bytes."""
    if not path.is_file():
        raise VendorError(f"{path} is missing: delete the folder {path.parents[pin.target.count('/')]} and run again.")
    found = sha256_of(path)
    if found != pin.sha256:
        raise VendorError(
            f"{path} has sha256 {found}, but build/vendor.json pins {pin.sha256} for {pin.source}. If the file was "
            f"changed by hand, delete {path.parents[pin.target.count('/')]} and run again; if its version was raised "
            "on purpose, run python build/vendor.py --pin and review the change."
        )


def sha256_of(path: Path) -> str:
    """sha256 of a file in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pin(inputs: Inputs) -> None:
    """Fetch everything and write the sha256 of what came into vendor.json."""
    pins = read_pins(inputs.pins)
    staging = _fetch(inputs)
    fresh = []
    for entry in pins:
        source = _locate(staging, entry)
        fresh.append(Pin(entry.target, entry.source, sha256_of(source)))
    write_pins(inputs.pins, fresh)
    shutil.rmtree(staging)


def _fill(inputs: Inputs, pins: list[Pin], home: Path) -> None:
    """Fetch, check and lay out all pinned files, beside ``home`` first: a killed run leaves nothing half-filled."""
    staging = _fetch(inputs)
    laid_out = staging / "laid-out"
    for entry in pins:
        source = _locate(staging, entry)
        check(source, entry)
        target = laid_out / entry.target
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    laid_out.rename(home)
    shutil.rmtree(staging)


def _fetch(inputs: Inputs) -> Path:
    """A fresh folder with npm's node_modules/ and pip's wheels/ in it."""
    staging = inputs.cache / "fetching.partial"
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    print("vendor: fetching the pinned packages of npm and PyPI", flush=True)
    shutil.copy(inputs.packages, staging)
    shutil.copy(inputs.lock, staging)
    # No package's install script runs: the page needs files, not builds.
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], staging, "npm ci", "Node 20 or newer with npm")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    download += ["--only-binary", ":all:", *PIP_PLATFORM, "--dest", str(staging / "wheels")]
    _run([*download, "--requirement", str(inputs.requirements)], staging, "pip download", "pip")
    for wheel in sorted((staging / "wheels").glob("*.whl")):
        if not wheel.name.endswith("-none-any.whl"):
            _pure_wheel(wheel)
    return staging


def _run(command: list[str], folder: Path, name: str, needs: str) -> None:
    """Run a registry's client; on failure raise VendorError with the last lines it wrote."""
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise VendorError(f"{name} cannot be run because {command[0]} is not installed: install {needs}.") from None
    if result.returncode != 0:
        said = " / ".join((result.stderr or result.stdout).strip().splitlines()[-6:])
        raise VendorError(f"{name} failed, so third-party files could not be fetched. It said: {said}")


def _locate(staging: Path, entry: Pin) -> Path:
    """Where the fetched file of ``entry`` lies in the staging folder."""
    registry, _, name = entry.source.partition(":")
    folder = {"npm": "node_modules", "pypi": "wheels"}[registry]
    path = staging / folder / name
    if not path.is_file():
        raise VendorError(f"{entry.source} is not in the fetched packages: correct its line in build/vendor.json.")
    return path


def _pure_wheel(wheel: Path) -> None:
    """Write a py3-none-any wheel of the Python files of ``wheel`` beside it, the same bytes on every machine.

    Members are sorted, dated 1980-01-01 and stored uncompressed (deflate's output depends on the zlib in use).
    RECORD is written as in https://packaging.python.org/en/latest/specifications/recording-installed-packages/.
    """
    name, version = wheel.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.endswith(("/", ".so", ".pyd", ".c", ".pyi")) or member in (f"{info}/RECORD", f"{info}/WHEEL"):
                continue
            members[member] = archive.read(member)
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: handbill\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(
        f"{member},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for member, data in sorted(members.items())
    )
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(wheel.with_name(f"{name}-{version}-py3-none-any.whl"), "w", zipfile.ZIP_STORED) as archive:
        for member, data in sorted(members.items()):
            entry = zipfile.ZipInfo(member)  # dated 1980-01-01 unless told otherwise
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, on whatever system this runs
            archive.writestr(entry, data)


def main() -> int:
    """The command ``python build/vendor.py [--pin]``."""
    parser = argparse.ArgumentParser(description="Gather the pinned third-party files of the page into .cache/vendor.")
    parser.add_argument("--pin", action="store_true", help="write the sha256 of what is fetched into build/vendor.json")
    arguments = parser.parse_args()
    inputs = Inputs.of(ROOT)
    try:
        if arguments.pin:
            pin(inputs)
        files = gather(inputs)
    except VendorError as error:
        print(f"vendor: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in files.values())
    print(f"vendor: {len(files)} third-party files, {size / 1e6:.1f} MB, every sha256 as pinned")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
