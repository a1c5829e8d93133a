"""Stages: an export that was stopped goes on from the last whole one, and ends in the same bytes."""

from __future__ import annotations

import hashlib
import json
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tiny_checkpoint
from exporter import export as command
from exporter.errors import ExportError
from exporter.stages import Stages, alone


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


def stop_after(patch: pytest.MonkeyPatch, target: str, call: int) -> None:
    """Raise from the ``call``-th call of ``target``, which has then done its work."""
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


def stop_within(patch: pytest.MonkeyPatch, file: str, call: int) -> None:
    """Raise in the middle of writing ``file`` for the ``call``-th time: half of it is there."""
    write, calls = Path.write_bytes, []

    def half(path: Path, data: bytes) -> int:
        if path.name == file and path.parent.name == "converted":
            calls.append(1)
            if len(calls) == call:
                write(path, data[: len(data) // 2])
                raise StoppedError
        return write(path, data)

    patch.setattr(Path, "write_bytes", half)
    patch.setattr(Path, "write_text", lambda path, text, *_, **__: half(path, text.encode()))


STAGES = ("quantized", "converted", "verified")

Stop = tuple[Callable[[pytest.MonkeyPatch, str, int], None], str, int, int]
"""How and where a run stops, and how many of STAGES it leaves whole."""

STOPS: list[list[Stop]] = [
    [
        (stop_after, "exporter.store.Store.write", 9, 0),
        (stop_after, "exporter.graph._Shards.write", 3, 1),
        (stop_after, "exporter.verify.Gate.passed", 1, 2),
        (stop_within, "report.html", 1, 3),
    ],
    [
        (stop_after, "exporter.quantize.stream", 1, 0),
        (stop_within, "model.onnx", 1, 1),
        (stop_within, "model.onnx.partial", 1, 2),  # to accuracy_level 0
        (stop_within, "manifest.json", 1, 3),
    ],
    [
        (stop_after, "exporter.pipeline.convert", 1, 1),
        (stop_within, "model.onnx.partial", 2, 2),  # to the one that ships
        (stop_after, "exporter.pipeline.build", 1, 3),
    ],
    [(stop_after, "exporter.pipeline.write_plan", 1, 1), (stop_after, "exporter.verify.measure", 1, 2)],
    [(stop_after, "exporter.pipeline._write_graphs", 1, 1)],
]
"""Exports that are stopped again and again, once a stage: so each stage that was stopped is then run to its end."""


@pytest.mark.parametrize("stops", STOPS, ids=lambda stops: stops[0][1])
def test_stopped_and_run_again(
    stops: list[Stop],
    checkpoint: Path,
    whole: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = 0
    for stop, where, call, kept in stops:
        with monkeypatch.context() as patch:
            stop(patch, where, call)
            with pytest.raises(StoppedError):
                command.export(str(checkpoint), tmp_path, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".tiny.partial"], where
        assert went_on_from(capsys) == STAGES[:left], where
        left = kept
    assert contents(command.export(str(checkpoint), tmp_path, tmp_path)) == whole
    assert went_on_from(capsys) == STAGES[:left]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def went_on_from(capsys: pytest.CaptureFixture[str]) -> tuple[str, ...]:
    """The stages that the run just ended says it did not run, since one before had."""
    said = capsys.readouterr().out
    return tuple(name for name in STAGES if f"{name.capitalize()} before" in said)


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 1.5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def other_merges(folder: Path) -> None:
    """The text is then read as other tokens, by a stage that would count as whole."""
    made = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    made["model"]["merges"] = made["model"]["merges"][:-50]
    (folder / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")


@pytest.mark.parametrize("change", [other_weights, other_merges])
def test_a_changed_checkpoint_starts_anew(
    change: Callable[[Path], None],
    checkpoint: Path,
    whole: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same name and config: what the stopped run had made of the other checkpoint is not used."""
    other = shutil.copytree(checkpoint, tmp_path / "tiny")
    change(other)
    with monkeypatch.context() as patch:
        stop_after(patch, "exporter.verify.Gate.passed", 1)
        with pytest.raises(StoppedError):
            command.export(str(other), tmp_path / "models", tmp_path)
    shutil.copytree(checkpoint, other, dirs_exist_ok=True, copy_function=shutil.copyfile)
    capsys.readouterr()
    assert contents(command.export(str(other), tmp_path / "models", tmp_path)) == whole
    assert went_on_from(capsys) == ()


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


HOLD = """
import pathlib, sys
from exporter.stages import alone
with alone(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_export_of_one_name_is_refused_and_a_killed_one_is_not_in_the_way(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".tiny.partial")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout is not None and first.stdout.readline() == b"held\n"
    assert command.main([str(checkpoint), "--output", str(tmp_path)]) == 1
    assert "error: Another export is writing into" in capsys.readouterr().err
    with alone(tmp_path / ".other.partial"):
        pass
    first.kill()
    first.communicate()
    with alone(tmp_path / ".tiny.partial"):
        pass
    assert not list(tmp_path.iterdir())
