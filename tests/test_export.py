"""The command: bad input is one sentence and exit 1, nothing is half-written, nothing already there is lost."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_checkpoint
from exporter import export as command
from exporter import pipeline, verify
from exporter.errors import ExportError
from handbill.manifest import Manifest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save("llama", tmp_path_factory.mktemp("checkpoint") / "tiny")


def run(tmp_path: Path, *arguments: str) -> int:
    return command.main([*arguments, "--output", str(tmp_path / "models"), "--cache", str(tmp_path / "cache")])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def nothing_written(tmp_path: Path) -> bool:
    models = tmp_path / "models"
    return not models.exists() or not any(models.iterdir())


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_export_is_whole_and_repeatable(checkpoint: Path, tmp_path: Path) -> None:
    assert run(tmp_path, str(checkpoint)) == 0
    target = tmp_path / "models" / "tiny"
    manifest = Manifest.from_json((target / "manifest.json").read_text("utf-8"))
    first = contents(target)
    assert {file.name: file.sha256 for file in manifest.files} == {
        n: h for n, h in first.items() if n != "manifest.json"
    }
    assert manifest.licence.file == "LICENSE"
    assert manifest.plan == "plan.json"
    assert run(tmp_path, str(checkpoint)) == 0
    assert contents(target) == first
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]


def test_a_model_that_our_kernels_cannot_run_says_so(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "leaky")
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | {"hidden_act": "leaky_relu"}), "utf-8")
    assert run(tmp_path, str(folder)) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "CPU" in line]
    assert len(told) == 1
    assert re.fullmatch(
        "The CPU kernels do not know LeakyRelu as .* uses it, so this model runs on ORT Web only on the CPU.", told[0]
    )
    target = tmp_path / "models" / "leaky"
    manifest = Manifest.from_json((target / "manifest.json").read_text("utf-8"))
    assert manifest.plan == "" and manifest.graphs["wasm"] == "model.onnx"
    assert not (target / "plan.json").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smolm2-135m", "Did you mean smollm2-135m"),
        ("zzzz", "Known names: smollm2-135m"),
        ("./no/such/folder", "does not exist"),
        ("missing.gguf", "does not exist"),
    ],
)
def test_an_unknown_name(name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, name) == 1
    assert says in said(capsys)
    assert nothing_written(tmp_path)


def test_the_hub_out_of_reach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(tmp_path, "gemma-2b") == 1
    sentence = said(capsys)
    assert "google/gemma-2b" in sentence and "accept the model's licence" in sentence and "path of a folder" in sentence
    assert nothing_written(tmp_path)


def test_pickles_only(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert run(tmp_path, str(folder)) == 1
    assert "only as pickles (pytorch_model.bin)" in said(capsys)
    assert nothing_written(tmp_path)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, str(tmp_path)) == 1
    assert "has no config.json" in said(capsys)


def test_no_disk_space_is_seen_before_the_work(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    assert run(tmp_path, str(checkpoint)) == 1
    assert "GB free" in said(capsys)
    assert nothing_written(tmp_path)


def test_a_disk_that_fills_up(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exporter.graph.shard", full)
    assert run(tmp_path, str(checkpoint)) == 1
    assert "is full" in said(capsys)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".tiny.partial"]


@pytest.mark.parametrize("fault", ["softcap", "window", "rotary"])
def test_a_wrong_graph_fails_the_gate(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The faults that other exporters ship silently."""
    folder = tiny_checkpoint.save("gemma2", tmp_path / "gemma2")
    original = pipeline._write_graphs

    def broken(model: Any, *others: Any) -> Any:
        for node in model.graph.node:
            for item in node.attribute:
                if fault == "softcap" and item.name == "softcap":
                    item.f = 0.0
                if fault == "window" and item.name == "local_window_size":
                    item.i = -1
                if fault == "rotary" and item.name == "rotary_interleaved":
                    item.i = 1
        return original(model, *others)

    monkeypatch.setattr(pipeline, "_write_graphs", broken)
    assert run(tmp_path, str(folder)) == 1
    assert "differs from eager torch" in said(capsys)
    assert nothing_written(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is mapped")
def test_what_was_converted_is_let_go_before_the_graph_is_opened(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime maps the weights and packs a copy; with the Blocks that would be three times the model."""
    mapped = []

    def certify(*_: Any) -> None:
        mapped.extend(line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line)
        raise ExportError("seen")

    monkeypatch.setattr("exporter.pipeline.certify", certify)
    with pytest.raises(ExportError, match="seen"):
        command.export(str(checkpoint), tmp_path, tmp_path)
    assert mapped == []


def test_the_rotary_patch_does_not_leak(checkpoint: Path, tmp_path: Path) -> None:
    from transformers.models.llama import modeling_llama

    before = modeling_llama.apply_rotary_pos_emb
    reference = verify.eager_logits(tiny_checkpoint.model("llama"), range(20))
    assert run(tmp_path, str(checkpoint)) == 0
    assert modeling_llama.apply_rotary_pos_emb is before
    assert (verify.eager_logits(tiny_checkpoint.model("llama"), range(20)) == reference).all()


def test_a_norm_that_is_none_is_refused() -> None:
    class OddRMSNorm(torch.nn.Module):
        weight = torch.nn.Parameter(torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    from exporter.substitute import _norm

    with pytest.raises(ExportError, match="OddRMSNorm is not"):
        _norm(OddRMSNorm())


def test_help_and_list_are_for_newcomers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    assert "examples:" in capsys.readouterr().out
    assert command.main(["--list"]) == 0
    assert "google/gemma-2b" in capsys.readouterr().out
