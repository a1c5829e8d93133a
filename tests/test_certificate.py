"""The command's ways to quantize, and what an export has to prove: through the whole exporter, on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_checkpoint
import tiny_gguf
from exporter import export as command
from exporter import greedy
from exporter.native import NativeSession
from exporter.skeleton import whole_model
from exporter.weights import Safetensors
from handbill.manifest import Greedy, Manifest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save("llama", tmp_path_factory.mktemp("checkpoint") / "tiny")


def export(model: Path, tmp_path: Path, *arguments: str) -> tuple[Manifest, str]:
    """The manifest and the report of an export, which has to succeed."""
    output = tmp_path / "models"
    assert command.main([str(model), "--output", str(output), *arguments]) == 0
    (folder,) = output.iterdir()
    manifest = Manifest.from_json((folder / "manifest.json").read_text("utf-8"))
    assert manifest.report == "report.html"
    return manifest, (folder / manifest.report).read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "method", "least", "most"),
    [
        (["--quant", "rtn"], "round to nearest, 4 bit; embedding: round to nearest, 8 bit", 5.6, 5.7),
        (["--quant", "awq"], "AWQ, 4 bit; embedding: round to nearest, 8 bit", 5.6, 5.7),
        (["--quant", "hqq", "--bits", "8"], "half-quadratic, 8 bit; embedding: round to nearest, 8 bit", 8.5, 8.5),
        (["--budget", "5.5"], "GPTQ, 4 bit; GPTQ, 8 bit; embedding: ", 5.0, 5.5),
    ],
)
def test_ways_to_quantize(
    arguments: list[str], method: str, least: float, most: float, checkpoint: Path, tmp_path: Path
) -> None:
    """Each passes the gate against eager torch; what it did is in the manifest and, a matrix a row, in the page."""
    manifest, report = export(checkpoint, tmp_path, *arguments)
    assert manifest.quantization.method.startswith(method)
    assert least <= manifest.quantization.bits_per_weight <= most
    assert report.count("<circle") == 1 + 3 * 7  # the embedding, and the matrices of three layers
    checked = manifest.verification
    assert max(checked.prefill, checked.chunked, checked.decode) < 1e-4
    assert checked.kl_divergence > 1e-5 and 0 < checked.top1_agreement < 1
    assert checked.perplexity_quantized != checked.perplexity_source
    assert checked.perplexity_shipped == pytest.approx(checked.perplexity_quantized, rel=0.05)


def test_a_ggufs_blocks_stay_unless_a_method_is_named(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    manifest, report = export(tmp_path / "tiny.gguf", tmp_path / "as-is")
    assert "exact" in manifest.quantization.method and "<circle" not in report
    assert manifest.verification.perplexity_quantized == manifest.verification.perplexity_source
    manifest, report = export(tmp_path / "tiny.gguf", tmp_path / "anew", "--quant", "rtn")
    assert "exact" not in manifest.quantization.method and "<circle" in report


def test_a_gate_that_fails_writes_nothing(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "models"
    assert command.main([str(checkpoint), "--output", str(output), "--quant", "rtn", "--gate", "0.5"]) == 1
    said = capsys.readouterr().err
    assert re.search(r"Over \d{2,4} tokens of text .* --gate allows 0.5: nothing was written", said)
    assert not any(output.iterdir())


def test_a_full_certificate_has_greedy_answers(checkpoint: Path, tmp_path: Path) -> None:
    manifest, report = export(
        checkpoint, tmp_path, "--quant", "rtn", "--bits", "8", "--certificate", "full", "--gate", "2"
    )
    found = manifest.verification.greedy
    assert (found.prompts, found.tokens) == (8, 64)
    assert 0 < found.agreed <= found.compared <= 8 * 64
    assert found.agreed / found.compared > 0.3, "8 bits stay close even to a random model"
    assert f"{found.identical} of 8 answers" in " ".join(report.split())


def test_greedy_answers_are_compared_with_the_sources_own(checkpoint: Path, tmp_path: Path) -> None:
    """One pass over an answer finds what 64 steps of the source would have said."""
    export(checkpoint, tmp_path, "--quant", "rtn")
    folder = tmp_path / "models" / "tiny"
    manifest = Manifest.from_json((folder / "manifest.json").read_text("utf-8"))
    model: Any = whole_model(tiny_checkpoint.config("llama"), Safetensors(checkpoint))
    asked = [[3, 4, 5, 6], [7, 8, 9]]
    own = [
        model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[
            0, len(ids) :
        ].tolist()
        for ids in asked
    ]
    assert greedy.compare(model, asked, own) == Greedy(2, greedy.TOKENS, 24, 24, 2)
    wrong = [[*own[0][:-1], (own[0][-1] + 1) % 512], own[1]]
    assert greedy.compare(model, asked, wrong) == Greedy(2, greedy.TOKENS, 24, 23, 1)
    (said,) = greedy.answers(folder / "model.onnx", manifest.kv, asked[:1], [], lambda _: None)
    session = NativeSession(folder / "model.onnx", manifest.kv, 128)
    assert said[0] == int(session.logits(asked[0])[0].argmax()) and len(said) == greedy.TOKENS
    stopped = greedy.answers(folder / "model.onnx", manifest.kv, asked[:1], [said[2]], lambda _: None)
    assert stopped == [said[: said.index(said[2]) + 1]]


def test_options_that_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["x", "--budget", "5", "--bits", "8"])
    assert "leave --bits away" in capsys.readouterr().err


def test_the_help_names_every_method() -> None:
    """The command's own copy, so that --help need not import torch."""
    from exporter.quantize import METHODS

    source = Path(command.__file__).read_text("utf-8")
    assert json.dumps(list(METHODS))[1:-1].replace('"', '"') in source


def test_a_calibration_text_that_is_none(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    for name, says in (("short.txt", "give one of several thousand"), ("none.txt", "cannot be read as UTF-8 text")):
        arguments = [str(checkpoint), "--output", str(tmp_path / "models"), "--calibration", str(tmp_path / name)]
        assert command.main(arguments) == 1
        assert says in capsys.readouterr().err
