"""Stages: an export that was stopped goes on from the last whole one, and ends in the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

import tiny_checkpoint
from exporter import export as command
from exporter.errors import ExportError
from exporter.stages import Stages


class StoppedError(BaseException):
    """What no `except` expects, as a signal is."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save("tinyllama-1.1b-chat", tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The export that nothing stopped."""
    home = tmp_path_factory.mktemp("whole")
    return contents(command.export(str(checkpoint), home, home))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def stop_at(patch: pytest.MonkeyPatch, target: str, call: int) -> None:
    """Raise from the ``call``-th call of ``target``, which has then done its work."""
    import pkgutil

    module, _, name = target.rpartition(".")
    owner: Any = pkgutil.resolve_name(module)
    original, calls = getattr(owner, name), []

    def stopped(*arguments: Any, **keywords: Any) -> Any:
        result = original(*arguments, **keywords)
        calls.append(1)
        if len(calls) == call:
            raise StoppedError
        return result

    patch.setattr(owner, name, stopped)


@pytest.mark.parametrize(
    ("target", "call", "kept"),
    [
        ("exporter.store.Store.write", 9, []),
        ("exporter.quantize.stream", 1, []),
        ("exporter.pipeline.convert", 1, ["quantized"]),
        ("exporter.graph._Shards.write", 3, ["quantized"]),
        ("exporter.pipeline._write_graphs", 1, ["quantized"]),
        ("exporter.verify.compare", 1, ["quantized", "converted"]),
        ("exporter.verify.measure", 1, ["quantized", "converted"]),
        ("exporter.pipeline.write_plan", 1, ["quantized"]),
        ("exporter.pipeline.build", 1, ["quantized", "converted", "verified"]),
    ],
)
def test_stopped_and_run_again(
    target: str,
    call: int,
    kept: list[str],
    checkpoint: Path,
    whole: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, target, call)
        with pytest.raises(StoppedError):
            command.export(str(checkpoint), tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".tiny.partial"]
    capsys.readouterr()
    assert contents(command.export(str(checkpoint), tmp_path, tmp_path)) == whole
    said = capsys.readouterr().out
    assert [name for name in ("quantized", "converted", "verified") if f"{name.capitalize()} before" in said] == kept
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_changed_checkpoint_starts_anew(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same name, other weights: what the stopped run had made of the old ones is not used."""
    import shutil

    other = shutil.copytree(checkpoint, tmp_path / "tiny")
    with monkeypatch.context() as patch:
        stop_at(patch, "exporter.verify.compare", 1)
        with pytest.raises(StoppedError):
            command.export(str(other), tmp_path / "models", tmp_path)
    tiny_checkpoint.save("llama", other)
    capsys.readouterr()
    again = contents(command.export(str(other), tmp_path / "models", tmp_path))
    assert "before" not in capsys.readouterr().out
    assert again == contents(command.export(str(other), tmp_path / "fresh", tmp_path))


def test_a_stage_runs_once_and_leaves_no_halves(tmp_path: Path) -> None:
    ran = []

    def make(folder: Path, name: str) -> str:
        assert not list(folder.iterdir())
        (folder / name).touch()
        ran.append(name)
        return name

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise StoppedError

    home = tmp_path / "stages"
    stages = Stages(home, ["a"])
    assert stages.run("one", lambda folder: make(folder, "x")) == "x"
    with pytest.raises(StoppedError):
        stages.run("two", fail)
    again = Stages(home, ["a"])
    assert again.run("one", lambda folder: make(folder, "never")) == "x"
    assert again.run("two", lambda folder: make(folder, "y")) == "y"
    assert ran == ["x", "y"]
    assert Stages(home, ["b"]).run("one", lambda folder: make(folder, "z")) == "z"
    assert not (home / "two").exists()


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    def refuse(_: Path) -> None:
        raise ExportError("No.")

    stages = Stages(tmp_path / "stages", [])
    with pytest.raises(ExportError):
        stages.run("one", refuse)
    assert not (tmp_path / "stages").exists()
