"""Adapters: merged weights against eager torch with PEFT's own arithmetic beside every layer."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny_checkpoint
from exporter import adapter
from exporter.adapter import Adapted, Adapter, adapt, parse
from exporter.checkpoint import open_checkpoint
from exporter.errors import ExportError
from exporter.skeleton import skeleton, whole_model
from exporter.weights import Safetensors
from tiny_adapter import RANK, beside, save


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save("llama", tmp_path_factory.mktemp("base") / "tiny")


def merged(checkpoint: Path, adapters: list[Adapter], ids: Tensor) -> Tensor:
    weights = Adapted(Safetensors(checkpoint), adapters)
    model = whole_model(tiny_checkpoint.config("llama"), weights).double()
    with torch.no_grad():
        result: Tensor = model(ids).logits
    return result


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, in parts of the largest logit: merged weights are float32, whose last bit is 6e-8."""
    return float((found - wanted).abs().max() / wanted.abs().max())


IDS = torch.arange(3, 60)[None]


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({}, 16 / RANK),
        ({"use_rslora": True}, 16 / math.sqrt(RANK)),
        ({"alpha_pattern": {"q_proj": 16, "layers.0.mlp.down_proj": 16}, "lora_alpha": 16}, 16 / RANK),
    ],
)
def test_merged_is_what_peft_computes(
    settings: dict[str, Any], scaling: float, checkpoint: Path, tmp_path: Path
) -> None:
    folder = save(tmp_path / "lora", **settings)
    wanted = beside([(folder, 1.0, scaling)], IDS)
    assert apart(merged(checkpoint, [Adapter(folder)], IDS), wanted) < 1e-6
    assert apart(beside([], IDS), wanted) > 0.01, "the adapter should matter"


def test_a_pattern_is_for_its_layers_alone(tmp_path: Path) -> None:
    folder = save(tmp_path / "lora", rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 3})
    found = Adapter(folder).pairs
    assert found["model.layers.1.self_attn.v_proj.weight"].scale == 3 / 2
    assert found["model.layers.1.self_attn.q_proj.weight"].scale == 16 / RANK


def test_a_tied_lm_head_cannot_be_adapted_alone(checkpoint: Path, tmp_path: Path) -> None:
    """Not even where the checkpoint stores one: the model computes with the embedding."""
    base = shutil.copytree(checkpoint, tmp_path / "tiny")
    stored = load_file(base / "model.safetensors")
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    folder = save(tmp_path / "lora", targets=("lm_head",))
    with pytest.raises(ExportError, match=r"lora changes lm_head.weight, which in this model is its embedding too"):
        skeleton(tiny_checkpoint.config("llama"), Adapted(Safetensors(base), [Adapter(folder)]))


def test_several_with_weights(checkpoint: Path, tmp_path: Path) -> None:
    one, two = save(tmp_path / "one"), save(tmp_path / "two", seed=1, lora_alpha=2)
    wanted = beside([(one, 0.5, 4.0), (two, -1.5, 0.5)], IDS)
    adapters = [parse(f"{one}=0.5"), parse(f"{two}=-1.5")]
    assert apart(merged(checkpoint, adapters, IDS), wanted) < 1e-6


def test_rows_are_merged_as_they_are_read(checkpoint: Path, tmp_path: Path) -> None:
    weights = Adapted(Safetensors(checkpoint), [Adapter(save(tmp_path / "lora"))])
    name = "model.layers.2.mlp.down_proj.weight"
    assert torch.allclose(weights.read(name, 7, 30), weights.read(name)[7:30], atol=1e-7)


def test_an_embedding_is_adapted_the_other_way_round(checkpoint: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "lora")
    a, b = torch.randn(RANK, tiny_checkpoint.VOCABULARY), torch.randn(64, RANK)
    key = "base_model.model.model.embed_tokens.lora_embedding_"
    save_file({f"{key}A": a, f"{key}B": b}, folder / adapter.TENSORS)
    base = Safetensors(checkpoint)
    name = "model.embed_tokens.weight"
    assert torch.allclose(Adapted(base, [Adapter(folder)]).read(name), base.read(name) + 4 * (b @ a).T, atol=1e-5)


def test_an_adapted_model_has_a_folder_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    base = open_checkpoint(str(checkpoint), tmp_path)
    found = adapt(base, [parse(f"{save(tmp_path / 'Legal Notes')}=0.5")])
    assert (found.slug, found.title) == ("tiny-legal-notes", "tiny + Legal Notes")
    assert found.source.name == "tiny + Legal Notes × 0.5"
    assert adapt(base, []) is base


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "of type PREFIX_TUNING; only LORA"),
        ({"use_dora": True}, "uses DoRA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": 8}, "has rank 4, but adapter_config.json says 8"),
    ],
)
def test_what_is_not_plain_lora_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=says):
        Adapter(save(tmp_path / "lora", **settings))


def test_a_folder_that_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has no adapter_config"):
        parse(str(tmp_path))
    with pytest.raises(ExportError, match="'much' is not a weight"):
        parse(f"{tmp_path}/lora=much")


def test_damage_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "lora")
    tensors = load_file(folder / adapter.TENSORS)
    whole = (folder / adapter.TENSORS).read_bytes()
    (folder / adapter.TENSORS).write_bytes(whole[:-9])
    with pytest.raises(ExportError, match="cannot be read"):
        Adapter(folder)
    first = next(iter(tensors))
    save_file({key: tensor for key, tensor in tensors.items() if key != first}, folder / adapter.TENSORS)
    with pytest.raises(ExportError, match="only one half"):
        Adapter(folder)
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, folder / adapter.TENSORS)
    with pytest.raises(ExportError, match="not part of a LoRA"):
        Adapter(folder)
    narrow = {key: tensor[:, :2].contiguous() if "_A" in key else tensor for key, tensor in tensors.items()}
    save_file(narrow, folder / adapter.TENSORS)
    with pytest.raises(ExportError, match="is for another model"):
        Adapted(Safetensors(checkpoint), [Adapter(folder)])


def test_the_command_merges(checkpoint: Path, tmp_path: Path) -> None:
    """The whole exporter: its gate compares with eager torch on the merged weights."""
    from exporter import export as command

    output = tmp_path / "models"
    arguments = [str(checkpoint), "--output", str(output), "--adapter", f"{save(tmp_path / 'notes')}=0.5"]
    assert command.main(arguments) == 0
    manifest = json.loads((output / "tiny-notes" / "manifest.json").read_text("utf-8"))
    assert manifest["source"]["name"] == "tiny + notes × 0.5"
    assert command.main([str(checkpoint), "--output", str(output)]) == 0
    base = json.loads((output / "tiny" / "manifest.json").read_text("utf-8"))
    perplexities = [made["verification"]["perplexity_source"] for made in (manifest, base)]
    assert abs(perplexities[0] / perplexities[1] - 1) > 1e-3
