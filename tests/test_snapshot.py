"""build/snapshot.py: Python's memory as the page restores it. That it restores is what every page test shows."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

import snapshot
import vendor

ROOT = Path(__file__).resolve().parent.parent


def unpacked(home: Path) -> Path:
    """A site as far as the snapshot needs it: Pyodide, the wheels, and our Python."""
    site = home / "site"
    for target, source in vendor.gather(vendor.Inputs.of(ROOT)).items():
        if target.startswith(("pyodide/", "python/")):
            (site / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, site / target)
    shutil.copytree(ROOT / "web" / "handbill", site / "handbill", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "web" / "browser.py", site / "browser.py")
    return site


def test_two_builds_give_the_same_bytes_which_tell_nothing_of_this_machine(tmp_path: Path) -> None:
    sites = [unpacked(tmp_path / name) for name in ("one", "another")]
    for site in sites:
        snapshot.build(site, site.parent / "cache")
    first, second = ((site / "pyodide" / "snapshot.memory").read_bytes() for site in sites)
    assert first == second
    for private in (str(tmp_path), str(ROOT)):
        assert private.encode() not in first
    assert b"handbill.generate" in first
    for name in snapshot.PACKED:
        assert not (sites[0] / name).exists(), "it would travel twice"
    names = zipfile.ZipFile(sites[0] / "pyodide" / "python_stdlib.zip").namelist()
    assert "csv.py" in names, "what is not imported yet can be"
    assert not {"json/decoder.py", "unittest/case.py"} & set(names)


def test_nothing_is_made_anew_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make(_: Path, kept: Path) -> None:
        made.append(kept)
        kept.mkdir(parents=True)
        for name in snapshot.MADE:
            (kept / name).write_text(f"{len(made)}", encoding="utf-8")

    monkeypatch.setattr(snapshot, "_make", make)

    def build(code: str) -> str:
        site = tmp_path / "site"
        shutil.rmtree(site, ignore_errors=True)
        for name in ("pyodide/pyodide.mjs", "python/a.whl", "handbill/core.py", "browser.py"):
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(code if name.startswith("handbill") else name, encoding="utf-8")
        snapshot.build(site, tmp_path / "cache")
        return (site / "pyodide" / "snapshot.memory").read_text(encoding="utf-8")

    assert [build("a = 1"), build("a = 1"), build("a = 2"), build("a = 1")] == ["1", "1", "2", "1"]


def test_a_python_that_does_not_start_has_its_sentence(tmp_path: Path) -> None:
    site = unpacked(tmp_path)
    (site / "handbill" / "broken.py").write_text("import no_such_module\n", encoding="utf-8")
    with pytest.raises(snapshot.SnapshotError, match=r"could not be saved(.|\n)*No module named 'no_such_module'"):
        snapshot.build(site, tmp_path / "cache")
    assert not any(path for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".partial"))
