"""Sizes computed from a config, against published parameter counts and the bytes of real exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import real_model
import tiny_checkpoint
import tiny_exports
import tiny_gguf
from exporter import export as command
from exporter.checkpoint import open_checkpoint, open_gguf
from exporter.context import KV_MEMORY, context_of, kv_bytes
from exporter.errors import ExportError
from exporter.estimate import GPU_MEMORY, RUNTIME, WASM_MEMORY, Estimate, config_of, estimate
from exporter.gguf_file import GGUFWeights
from exporter.graph import ALIGNMENT, INLINE_BYTES
from exporter.listing import estimated
from exporter.quantize import SMALL, Choice, Fitting
from exporter.recipes import RECIPES
from exporter.store import Store
from exporter.weights import Safetensors
from handbill.manifest import Manifest

GOLDEN = Path(__file__).with_name("golden") / "graphs"
BY_NAME = {recipe.name: recipe for recipe in RECIPES}


def of_recipe(name: str) -> Estimate:
    return estimate(config_of(BY_NAME[name].config))


def manifest_of(folder: Path) -> Manifest:
    return Manifest.from_json((folder / "manifest.json").read_text("utf-8"))


def written(manifest: Manifest) -> int:
    """Bytes of the shards."""
    return sum(file.bytes for file in manifest.files if file.name in manifest.weights)


@pytest.mark.parametrize("name", BY_NAME)
def test_parameters_are_the_published_ones(name: str) -> None:
    """They decide whether a recipe's config is right: one wrong size and the count is another."""
    assert of_recipe(name).parameters == json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))["parameters"]


@pytest.mark.parametrize("name", tiny_checkpoint.configs())
def test_a_tiny_export_has_the_computed_size(name: str) -> None:
    manifest = manifest_of(tiny_exports.exported(name))
    found = estimate(tiny_checkpoint.config(name), tiny_checkpoint.CONTEXT)
    assert found.parameters == manifest.architecture.parameters
    assert found.context == manifest.architecture.context
    assert round(found.bits_per_weight, 4) == manifest.quantization.bits_per_weight
    assert found.kv_bytes == 8 * manifest.kv.layers * manifest.kv.kv_heads * manifest.kv.head_dim
    # Small tensors go into the graph, and every tensor in a shard begins at a multiple of 64 bytes.
    tensors = 40 * manifest.architecture.layers
    assert -tensors * INLINE_BYTES <= written(manifest) - found.shards <= tensors * ALIGNMENT


@pytest.mark.parametrize("name", ["llama", "qwen2.5-0.5b"])
def test_tables_of_a_large_model_are_narrow(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("quantize", "estimate"):
        monkeypatch.setattr(f"exporter.{module}.SMALL", 1000)
    folder = tiny_checkpoint.save(name, tmp_path / "tiny")
    manifest = manifest_of(command.export(str(folder), tmp_path, tmp_path, quant="rtn"))
    found = estimate(tiny_checkpoint.config(name), tiny_checkpoint.CONTEXT)
    assert manifest.quantization.embedding_bits == 4
    assert round(found.bits_per_weight, 4) == manifest.quantization.bits_per_weight


def test_a_gguf_is_counted_as_it_goes_in(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    weights = open_gguf(path).weights
    assert isinstance(weights, GGUFWeights)
    folder = command.export(str(path), tmp_path / "models", tmp_path / "cache")
    found = estimate(weights.config, form=weights.first_row)
    assert round(found.bits_per_weight, 4) == manifest_of(folder).quantization.bits_per_weight
    assert found.bits_per_weight != estimate(weights.config).bits_per_weight


@pytest.mark.parametrize("name", ["llama", "qwen2.5-0.5b"])
@pytest.mark.parametrize("choice", [Choice(bits=8), Choice("gptq"), Choice("rtn", budget=5.5)])
@pytest.mark.parametrize("small", [1000, SMALL])
def test_what_is_asked_for_is_counted(
    name: str, choice: Choice, small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("quantize", "estimate"):
        monkeypatch.setattr(f"exporter.{module}.SMALL", small)
    config, weights = tiny_checkpoint.config(name), Safetensors(tiny_checkpoint.save(name, tmp_path / "tiny"))
    text = torch.randint(3, 512, (4, 80), generator=torch.Generator().manual_seed(5))
    fitting = Fitting(choice, config, weights, text)
    (tmp_path / "store").mkdir()
    fitting.run(text[0].tolist(), [1], tmp_path / "store")
    forms = Store(tmp_path / "store").forms().values()
    taken = 8 * sum(form.bytes for form in forms) / sum(form.rows * form.columns for form in forms)
    found = estimate(config, choice=choice)
    if choice.budget:
        assert found.bits_per_weight == pytest.approx(5.5, abs=0.01) and 4.7 < taken <= 5.5
        assert found.memory > estimate(config, choice=Choice("rtn")).memory
    else:
        assert found.bits_per_weight == taken


@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES if recipe.package])
def test_a_package_is_counted_as_its_gguf_is_stored(name: str) -> None:
    """Against the committed figures of its export."""
    results = Path(__file__).with_name("bench") / "results"
    (measured,) = [
        each
        for path in sorted(results.glob("export*.json"))
        if (each := json.loads(path.read_text("utf-8")))["model"] == name
    ]
    found = estimated(BY_NAME[name])
    assert round(found.bits_per_weight, 4) == measured["bits_per_weight"]
    assert abs(found.page / measured["bytes"] - 1) < 0.05  # Gemma's tokenizer.json is a tenth of the page
    assert found.bits_per_weight != of_recipe(name).bits_per_weight


@pytest.mark.model
def test_the_real_export_has_the_computed_size() -> None:
    manifest = real_model.manifest()
    weights = open_checkpoint("smollm2-135m", Path(".cache")).weights
    assert isinstance(weights, GGUFWeights)
    found = estimate(weights.config, form=weights.first_row)
    assert found.parameters == manifest.architecture.parameters
    assert round(found.bits_per_weight, 4) == manifest.quantization.bits_per_weight
    assert abs(written(manifest) / found.shards - 1) < 0.001
    assert abs(sum(file.bytes for file in manifest.files) / found.page - 1) < 0.01


def test_what_fits() -> None:
    found = of_recipe("phi-3-mini-4k")
    tokens = found.fits(WASM_MEMORY)
    assert 256 < tokens < found.context
    assert found.shards + RUNTIME + tokens * found.kv_bytes <= WASM_MEMORY
    assert found.shards + RUNTIME + (tokens + 1) * found.kv_bytes > WASM_MEMORY
    assert of_recipe("smollm2-135m").fits(GPU_MEMORY) == 8192
    assert of_recipe("llama-3.1-8b").fits(WASM_MEMORY) == 0


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("smollm2-135m", 8192),  # its own
        ("tinyllama-1.1b-chat", 2048),  # its own, a shorter one
        ("llama-3.1-8b", 8192),  # of 131,072: what a browser reads in minutes
        ("phi-4-mini", 4096),  # below the switch of its rotary tables
        ("phi-3.5-mini", 2560),  # what 2 GiB of KV cache hold
        ("smollm2-1.7b", 5376),  # the same
    ],
)
def test_context_of_a_page(name: str, context: int) -> None:
    config = config_of(BY_NAME[name].config)
    assert context_of(config) == context
    assert context * kv_bytes(config) <= KV_MEMORY


def test_a_wanted_context() -> None:
    config = config_of(BY_NAME["phi-3.5-mini"].config)
    assert context_of(config, 131072) == 131072
    assert estimate(config, 131072).shards - estimate(config).shards == (2 * 131072 - 2560) * 96 * 4
    with pytest.raises(ExportError, match="has 131072 tokens of context, so 131073 cannot be had"):
        context_of(config, 131073)


def test_list_shows_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(RECIPES)]}
    assert list(rows) == list(BY_NAME)
    assert rows["phi-3.5-mini"].split()[1:] == [
        *("3.82", "B", "7.64", "GB", "2.21", "GB", "2,560", "2,272", "1,897", "mit", "microsoft/Phi-3.5-mini-instruct")
    ]
    assert rows["mistral-7b"].split()[8:10] == ["-", "-"] and "the package registry" in rows["smollm2-135m"]


def plan_of(name: str, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, str]:
    assert command.main([name, "--plan", *more]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    return {line[2:20].strip(): line[20:] for line in lines}


def test_plan_of_a_recipe_by_either_name(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan_of("phi-4-mini", capsys)
    assert found == plan_of("microsoft/Phi-4-mini-instruct", capsys)
    assert found["parameters"] == "3,836,021,760"
    assert found["page"] == "2.23 GB, 4.60 bits a weight"
    assert found["KV cache"] == "262,144 bytes a token in float32"
    assert "4,096 tokens of its 131,072: there it would turn to its second rotary table" in found["context"]
    assert plan_of("phi-4-mini", capsys, "--context", "16384")["context"] == "16,384 tokens"
    assert plan_of("llama-3-8b", capsys)["4 GB GPU"] == "too small: the weights leave no room"


def test_plan_of_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan_of("gemma-3-270m", capsys)
    assert found["download"] == "253 MB, a GGUF" and found["page"].endswith("8.16 bits a weight")
    assert found["chat template"] == "none: it completes text"
    assert plan_of("gemma-3-270m", capsys, "--quant", "rtn")["page"].endswith("7.05 bits a weight")
    assert plan_of("qwen3-4b", capsys, "--bits", "8")["page"].endswith("8.50 bits a weight")
    assert plan_of("qwen3-4b", capsys, "--budget", "5")["page"].endswith("5.00 bits a weight")
    assert plan_of("qwen3-4b", capsys)["chat template"] == "tokenizer_config.json"
    assert command.main(["qwen3-4b", "--plan", "--budget", "4"]) == 1
    assert "--budget 4 is less than 4-bit weights take" in capsys.readouterr().err


def test_plan_reads_only_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoint"
    AutoConfig.for_model(**tiny_checkpoint.configs()["llama"]).save_pretrained(folder)
    assert plan_of(str(folder), capsys)["parameters"] == "125,376"
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    assert plan_of(str(path), capsys)["download"] == "none, it is here"


@pytest.mark.parametrize(
    ("settings", "says"), [({"model_type": "mixtral"}, "mixture of experts"), ({"model_type": "made_up"}, "not known")]
)
def test_plan_refuses_what_an_export_would(
    settings: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert command.main([str(tmp_path), "--plan"]) == 1
    assert says in capsys.readouterr().err
