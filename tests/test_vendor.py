"""build/vendor.py: what is pinned is what is shipped, or nothing is."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import vendor
from small_site import LIBRARY, checkout

ROOT = Path(vendor.__file__).resolve().parent.parent


def fake_registries(monkeypatch: pytest.MonkeyPatch, contents: bytes) -> list[list[str]]:
    """Stand in for npm and pip, which bring ``contents``; returns the commands that were run."""
    commands = []

    def run(command: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if command[0] == "npm":
            (cwd / "node_modules" / "library").mkdir(parents=True)
            (cwd / "node_modules" / "library" / "library.mjs").write_bytes(contents)
        else:
            (cwd / "wheels").mkdir()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def emptied(root: Path) -> vendor.Inputs:
    """The inputs of the miniature with nothing gathered yet."""
    inputs = vendor.Inputs.of(checkout(root))
    (inputs.cache / inputs.key() / "ort" / "library.mjs").unlink()
    (inputs.cache / inputs.key() / "ort").rmdir()
    (inputs.cache / inputs.key()).rmdir()
    return inputs


def test_the_second_run_asks_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = emptied(tmp_path)
    commands = fake_registries(monkeypatch, LIBRARY)
    first = vendor.gather(inputs)
    assert [command[0] for command in commands] == ["npm", sys.executable]
    assert "--ignore-scripts" in commands[0]
    assert "--require-hashes" in commands[1]
    assert vendor.gather(inputs) == first == {"ort/library.mjs": inputs.cache / inputs.key() / "ort" / "library.mjs"}
    assert len(commands) == 2
    assert [path.name for path in inputs.cache.iterdir()] == [inputs.key()]


def test_a_changed_byte_in_what_npm_brings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = emptied(tmp_path)
    fake_registries(monkeypatch, LIBRARY[:-1] + b" ")
    with pytest.raises(
        vendor.VendorError, match=r"library\.mjs has sha256 \w+, but build/vendor\.json pins \w+ for npm:"
    ):
        vendor.gather(inputs)
    assert not (inputs.cache / inputs.key()).exists()


def test_a_changed_byte_in_the_cache_is_refused(tmp_path: Path) -> None:
    inputs = vendor.Inputs.of(checkout(tmp_path))
    cached = inputs.cache / inputs.key() / "ort" / "library.mjs"
    cached.write_bytes(LIBRARY.replace(b"1", b"2", 1))
    with pytest.raises(vendor.VendorError, match="If the file was changed by hand, delete"):
        vendor.gather(inputs)
    cached.unlink()
    with pytest.raises(
        vendor.VendorError, match=f"is missing: delete the folder {re.escape(str(inputs.cache / inputs.key()))} and"
    ):
        vendor.gather(inputs)


def test_a_changed_version_is_gathered_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = vendor.Inputs.of(checkout(tmp_path))
    commands = fake_registries(monkeypatch, LIBRARY)
    vendor.gather(inputs)
    assert commands == []
    inputs.lock.write_text('{"lockfileVersion": 3}')
    vendor.gather(inputs)
    assert len(commands) == 2


def test_a_file_that_left_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = vendor.Inputs.of(checkout(tmp_path))
    vendor.write_pins(inputs.pins, [vendor.Pin("ort/x.mjs", "npm:library/x.mjs", "0" * 64)])
    fake_registries(monkeypatch, LIBRARY)
    with pytest.raises(vendor.VendorError, match=r"npm:library/x\.mjs is not in the fetched packages"):
        vendor.gather(inputs)


def test_pin_writes_what_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = vendor.Inputs.of(checkout(tmp_path))
    fake_registries(monkeypatch, b"newer")
    vendor.pin(inputs)
    (pin,) = vendor.read_pins(inputs.pins)
    assert pin == vendor.Pin("ort/library.mjs", "npm:library/library.mjs", hashlib.sha256(b"newer").hexdigest())
    assert vendor.gather(inputs)


def test_a_registry_that_fails_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = emptied(tmp_path)

    def refuse(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "one\ntwo\nnpm error code EINTEGRITY\n")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(vendor.VendorError, match=r"npm ci failed, .* npm error code EINTEGRITY"):
        vendor.gather(inputs)

    def absent(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(subprocess, "run", absent)
    with pytest.raises(vendor.VendorError, match="npm is not installed: install Node 20"):
        vendor.gather(inputs)


def test_a_pure_wheel_is_the_same_bytes_each_time_and_installs(tmp_path: Path) -> None:
    def compiled(folder: Path, date: tuple[int, int, int, int, int, int]) -> Path:
        folder.mkdir()
        wheel = folder / "spam-1.0-cp311-cp311-manylinux2014_x86_64.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in {
                "spam/__init__.py": "VALUE = 1\n",
                "spam/_fast.cpython-311-x86_64-linux-gnu.so": "\x7fELF",
                "spam-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: spam\nVersion: 1.0\n",
                "spam-1.0.dist-info/WHEEL": "Root-Is-Purelib: false\n",
                "spam-1.0.dist-info/RECORD": "",
            }.items():
                archive.writestr(zipfile.ZipInfo(name, date), text)
        return wheel

    first, second = compiled(tmp_path / "1", (2020, 1, 1, 0, 0, 0)), compiled(tmp_path / "2", (2026, 2, 2, 2, 2, 2))
    vendor._pure_wheel(first)
    vendor._pure_wheel(second)
    pure = first.with_name("spam-1.0-py3-none-any.whl")
    assert pure.read_bytes() == second.with_name(pure.name).read_bytes()
    with zipfile.ZipFile(pure) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        assert b"Root-Is-Purelib: true" in archive.read("spam-1.0.dist-info/WHEEL")
        for line in archive.read("spam-1.0.dist-info/RECORD").decode().splitlines():
            name, digest, size = line.split(",")
            if not name.endswith("RECORD"):
                data = archive.read(name)
                encoded = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
                assert (digest, size) == (f"sha256={encoded}", str(len(data)))
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([*install, str(pure)], check=True)
    assert (target / "spam" / "__init__.py").read_text() == "VALUE = 1\n"


def test_versions_are_stated_once_or_agree() -> None:
    packages = json.loads((ROOT / "web" / "package.json").read_text())["dependencies"]
    lock = json.loads((ROOT / "web" / "package-lock.json").read_text())["packages"]
    assert lock[""]["dependencies"] == packages
    for name, version in packages.items():
        assert lock[f"node_modules/{name}"]["version"] == version
    assert all("integrity" in entry for name, entry in lock.items() if name)
    assert not [name for name, entry in lock.items() if "resolved" in entry], "a lock names no registry's address"
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (jinja,) = [line for line in dependencies if line.startswith("jinja2")]
    assert jinja in (ROOT / "build" / "requirements.txt").read_text()


def test_every_pin_has_a_hash_and_every_package_a_licence() -> None:
    pins = vendor.read_pins(ROOT / "build" / "vendor.json")
    assert all(re.fullmatch("[0-9a-f]{64}", pin.sha256) for pin in pins)
    assert len({pin.target for pin in pins}) == len(pins)
    licences = {Path(pin.target).stem for pin in pins if pin.target.startswith("licences/")}
    licences |= {path.stem for path in (ROOT / "build" / "licences").glob("*.txt")}
    assert licences >= {"pyscript-core", "polyscript", "pyodide", "python", "micropython", "onnxruntime"}
    assert licences >= {"onnxruntime-third-party", "huggingface-tokenizers", "marked", "dompurify"}
