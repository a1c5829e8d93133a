"""What is not supported is refused by name, in one sentence, with only config.json in the folder."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

import tiny_checkpoint
from exporter import export as command
from exporter.recipes import RECIPES
from exporter.support import refuse_unsupported

LLAMA = {"model_type": "llama", **tiny_checkpoint.configs()["llama"]}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"model_type": "mixtral"}, "mixtral: a mixture of experts"),
    "more-experts": ({"model_type": "qwen3_moe"}, "qwen3_moe: a mixture of experts"),
    "routed-experts": ({"model_type": "deepseek_v3"}, "deepseek_v3: a mixture of experts"),
    "encoder-decoder": ({"model_type": "t5"}, "t5: an encoder-decoder model"),
    "vision": ({"model_type": "gemma3"}, "gemma3: a model with a vision tower"),
    "audio": ({"model_type": "qwen2_audio"}, "qwen2_audio: a model with an audio tower"),
    "state-space": ({"model_type": "mamba"}, "mamba: a state-space or recurrent model, or a hybrid with one"),
    "hybrid": ({"model_type": "falcon_h1"}, "falcon_h1: a state-space or recurrent model, or a hybrid with one"),
    "expert-hybrid": ({"model_type": "jamba"}, "jamba: a state-space or recurrent model, or a hybrid with one"),
    "convolutions": ({"model_type": "lfm2"}, "lfm2: a state-space or recurrent model, or a hybrid with one"),
    "linear-attention": ({"model_type": "qwen3_next"}, "qwen3_next: a state-space or recurrent model"),
    "learned-positions": ({"model_type": "gpt2"}, "gpt2: a model without rotary position embeddings"),
    "no-causal-model": ({"model_type": "esm", "rope_theta": 1e4}, "esm: a model that is not a causal language model"),
    "own-attention": ({"model_type": "falcon"}, "falcon: an attention that does not go through AttentionInterface"),
    "own-attention-with-norms": (
        {"model_type": "stablelm", "qk_layernorm": True},
        "stablelm: an attention that does not go through AttentionInterface",
    ),
    "unknown-to-optimum": ({"model_type": "olmo3"}, "olmo3: an architecture that Optimum does not know"),
    "quantized": (
        LLAMA | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        "llama: weights that are already quantized (fp8) are not supported",
    ),
    "quantized-before-methods-had-names": (
        LLAMA | {"quantization_config": {"load_in_8bit": True}},
        "llama: weights that are already quantized (some way) are not supported",
    ),
    "unknown": ({"model_type": "made_up"}, "made_up: this architecture is not known to transformers"),
    "remote-code": (
        {"model_type": "made_up", "auto_map": {"AutoConfig": "x.Y"}},
        "made_up: a model that needs its own",
    ),
    "no-type": ({"vocab_size": 5}, "without a model_type: this architecture"),
    "hidden-size": (LLAMA | {"hidden_size": 80, "head_dim": 16}, "llama: a hidden size of 80 is not supported"),
    "head-size": (LLAMA | {"head_dim": 24}, "llama: a head size of 24 is not supported"),
    "rotated-part": (
        {"model_type": "phi", "hidden_size": 128, "num_attention_heads": 4, "partial_rotary_factor": 0.25},
        "phi: a rotated part of a head of 8 is not supported",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, says = REFUSED[name]
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns of its own defaults for some of these
        assert (
            command.main([str(folder), "--output", str(tmp_path / "models"), "--cache", str(tmp_path / "cache")]) == 1
        )
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert sentence.startswith(f"error: {says}")
    assert "not supported" in sentence
    assert not (tmp_path / "models").exists()


def test_a_config_that_makes_none_is_not_called_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"model_type": "phi3", "rope_scaling": {"type": "longrope"}}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert command.main([str(tmp_path), "--output", str(tmp_path / "models")]) == 1
    said = capsys.readouterr().err
    assert "error: phi3: config.json in" in said and "does not make a config (`rope_scaling` must be" in said


def test_an_unknown_rope_is_named() -> None:
    config = AutoConfig.for_model(**LLAMA)
    config.rope_scaling = {"rope_type": "spiral", "factor": 2.0}
    with pytest.raises(command.ExportError, match="llama: rope scaling of type 'spiral' is not supported"):
        refuse_unsupported(config)


@pytest.mark.parametrize("name", tiny_checkpoint.configs())
def test_every_structure_of_a_recipe_is_supported(name: str) -> None:
    refuse_unsupported(tiny_checkpoint.config(name))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_is_supported(recipe: Any) -> None:
    refuse_unsupported(AutoConfig.for_model(**tiny_checkpoint.with_factors(recipe.config)))
