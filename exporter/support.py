"""What the exporter supports, decided from config.json alone: before any weights are read or even downloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
)
from transformers.integrations.accelerate import init_empty_weights
from transformers.modeling_utils import no_init_weights

from exporter.blocks import BLOCK_SIZE
from exporter.context import head_dim
from exporter.errors import ExportError, first_line
from exporter.json_file import read_json
from exporter.substitute import plain_attentions, uses_attention_interface

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
"""Kinds of rotary scaling that come down to cos and sin tables within a model's own context."""

COLUMNS = 16
"""What heads and their rotated part must be multiples of for onnxruntime's GroupQueryAttention."""

_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_STATES = (
    "mamba_d_state",
    "ssm_state_size",
    "state_size",
    "mamba_expand",
    "block_types",
    "conv_L_cache",
    "rescale_every",
)


def read_config(folder: Path) -> PretrainedConfig:
    """The transformers config of a checkpoint folder. Raises ExportError where there is none that can be used."""
    settings = read_json(folder / "config.json", "it is not a checkpoint folder.")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, TypeError) as error:
        kind = settings.get("model_type", "without a model_type")
        if kind in CONFIG_MAPPING:
            raise ExportError(
                f"{kind}: config.json in {folder.name} does not make a config ({first_line(error)}); mend it or "
                "download it again."
            ) from error
        if "auto_map" in settings:
            raise ExportError(f"{kind}: a model that needs its own remote code is not supported.") from error
        raise ExportError(f"{kind}: this architecture is not known to transformers; it is not supported.") from error


def refuse_unsupported(config: PretrainedConfig) -> None:
    """Raise ExportError, naming what it is, for an architecture that the exporter would get wrong."""
    for what, applies in _REFUSALS:
        if applies(config):
            raise ExportError(f"{config.model_type}: {what} is not supported; `--list` shows models that are.")
    stored = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if stored:
        raise ExportError(
            f"{config.model_type}: weights that are already quantized ({stored.get('quant_method', 'some way')}) are "
            "not supported; take the checkpoint that they were made from, or a GGUF."
        )
    columns = head_dim(config)
    rotated = int(columns * (getattr(config, "partial_rotary_factor", None) or 1.0))
    for what, size, unit in (
        ("a hidden size", config.hidden_size, BLOCK_SIZE),
        ("a head size", columns, COLUMNS),
        ("a rotated part of a head", rotated, COLUMNS),
    ):
        if size % unit:
            raise ExportError(f"{config.model_type}: {what} of {size} is not supported, being no multiple of {unit}.")
    rope = rope_type(config)
    if rope not in ROPE_TYPES:
        raise ExportError(f"{config.model_type}: rope scaling of type {rope!r} is not supported.")


def rope_type(config: PretrainedConfig) -> str:
    """The kind of rotary scaling, "default" for none; older configs call it ``type``."""
    scaling = getattr(config, "rope_scaling", None) or {}
    return str(scaling.get("rope_type", scaling.get("type", "default")))


def _has_states(config: Any) -> bool:
    layers = set(getattr(config, "layer_types", None) or ())
    return bool(layers - _LAYER_TYPES) or any(hasattr(config, key) for key in _STATES)


def _has_experts(config: Any) -> bool:
    return any((getattr(config, key, None) or 0) > 1 for key in _EXPERTS)


def _is_no_causal_model(config: Any) -> bool:
    return type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING


def _has_other_attention(config: Any) -> bool:
    """Neither AttentionInterface is called nor do the layers' attentions have the plain form that can be replaced."""
    if uses_attention_interface(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]):
        return False
    small = copy.deepcopy(config)
    small.num_hidden_layers = 1
    with init_empty_weights(include_buffers=True), no_init_weights():
        model = AutoModelForCausalLM.from_config(small)
    return not plain_attentions(model) or bool(getattr(config, "alibi", False))


def _is_unknown_to_optimum(config: Any) -> bool:
    import optimum.exporters.onnx.model_configs  # noqa: F401 (fills the table of architectures)
    from optimum.exporters.tasks import TasksManager

    return "onnx" not in TasksManager._SUPPORTED_MODEL_TYPE.get(config.model_type, {})


_REFUSALS: list[tuple[str, Callable[[Any], bool]]] = [
    ("an encoder-decoder model", lambda config: bool(getattr(config, "is_encoder_decoder", False))),
    ("a model with an audio tower", lambda config: hasattr(config, "audio_config")),
    ("a model with a vision tower", lambda config: hasattr(config, "vision_config")),
    ("a state-space or recurrent model, or a hybrid with one", _has_states),
    ("a mixture of experts", _has_experts),
    ("attention in chunks", lambda config: "chunked_attention" in (getattr(config, "layer_types", None) or ())),
    ("a model without rotary position embeddings", lambda config: not hasattr(config, "rope_theta")),
    ("a model that is not a causal language model", _is_no_causal_model),
    ("an attention that does not go through AttentionInterface", _has_other_attention),
    ("an architecture that Optimum does not know", _is_unknown_to_optimum),
]
"""Each with its test, the most telling first: a mixture of experts may also be unknown to Optimum."""
