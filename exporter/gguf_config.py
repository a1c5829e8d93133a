"""Which architectures can be read from a GGUF, and the transformers config that its metadata amounts to.

A GGUF names its values ``{architecture}.{key}`` (gguf's constants.py). What a family fixes in its code and llama.cpp
therefore does not write (Gemma's attention scale, SmolLM3's layers without rotary) comes from the config class.
transformers has a table of its own, which lacks half of these and drops soft-capping, biases and rope scaling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from exporter.errors import ExportError

_COMMON = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "rope.freq_base": "rope_theta",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_SHORT_CONTEXT = {"rope.scaling.original_context_length": "original_max_position_embeddings"}
_YARN = {
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


@dataclass(frozen=True)
class Architecture:
    """A GGUF architecture as transformers knows it.

    ``model_type``; ``keys``, names of its config by GGUF key, beside the common ones; ``fixed``, what is always so.
    ``permuted``: llama.cpp's converter stores the rows of q and k for interleaved rotary. ``norm_plus_one``: it adds
    the 1 of Gemma's 1 + weight. ``head_dim``: the config names it. ``partial``: not all of a head need rotate.
    """

    model_type: str
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    permuted: bool = False
    norm_plus_one: bool = False
    head_dim: bool = True
    partial: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True),
    "gemma": Architecture("gemma", fixed={"hidden_activation": "gelu_pytorch_tanh"}, norm_plus_one=True),
    "gemma2": Architecture(
        "gemma2",
        _WINDOW
        | {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"},
        norm_plus_one=True,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        _WINDOW
        | {
            "attention.sliding_window_pattern": "sliding_window_pattern",
            "rope.freq_base_swa": "rope_local_base_freq",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        norm_plus_one=True,
    ),
    "phi2": Architecture("phi", fixed={"hidden_act": "gelu_new"}, head_dim=False, partial=True),
    "phi3": Architecture("phi3", _WINDOW | _SHORT_CONTEXT, head_dim=False, partial=True),
    "qwen2": Architecture("qwen2", head_dim=False),
    "qwen3": Architecture("qwen3"),
    "smollm3": Architecture("smollm3", permuted=True, head_dim=False),
    "granite": Architecture(
        "granite",
        {
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        permuted=True,
        head_dim=False,
    ),
    "olmo2": Architecture("olmo2", head_dim=False),
    "stablelm": Architecture("stablelm", head_dim=False, partial=True),
}
"""By the name in ``general.architecture``. Mistral, TinyLlama and SmolLM 1 and 2 call themselves llama."""


def architecture_of(file: Any) -> Architecture:
    """The entry of ``file`` (a GGUFFile). Raises ExportError, naming the architecture, where there is none."""
    name = file.value("general.architecture")
    if name not in ARCHITECTURES:
        raise ExportError(
            f"{file.path.name} holds the architecture {name!r}, which cannot be read from a GGUF "
            f"({', '.join(ARCHITECTURES)} can); pass the original checkpoint's folder instead."
        )
    return ARCHITECTURES[name]


def config_of(file: Any) -> PretrainedConfig:
    """The transformers config of ``file`` (a GGUFFile). Raises ExportError for what cannot be expressed."""
    name, kind = file.value("general.architecture"), architecture_of(file)
    tensors = file.tensors
    if file.value(f"{name}.expert_count", 0):
        raise ExportError(f"{file.path.name}: a mixture of experts is not supported; `--list` shows models that are.")
    settings: dict[str, Any] = dict(kind.fixed)
    for key, setting in (_COMMON | dict(kind.keys)).items():
        value = file.value(f"{name}.{key}")
        if setting == "sliding_window_pattern" and isinstance(value, list):
            settings["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in value]
            continue
        if isinstance(value, list):
            raise ExportError(f"{file.path.name}: {key} differs from layer to layer, which is not supported.")
        if value is not None:
            settings[setting] = value
    if settings.get("sliding_window") == 0:  # how llama.cpp's converter writes that there is none
        settings["sliding_window"] = None
    if "token_embd.weight" not in tensors:
        raise ExportError(f"{file.path.name} has no tensor token_embd.weight; it is not a whole model.")
    head_dim = file.value(f"{name}.attention.key_length", settings["hidden_size"] // settings["num_attention_heads"])
    rotary = file.value(f"{name}.rope.dimension_count", head_dim)
    if kind.head_dim:
        settings["head_dim"] = head_dim
    elif head_dim * settings["num_attention_heads"] != settings["hidden_size"]:
        raise ExportError(f"{file.path.name}: heads of {head_dim} do not make up {settings['hidden_size']} channels.")
    if kind.partial:
        settings["partial_rotary_factor"] = rotary / head_dim
    elif rotary != head_dim:
        raise ExportError(f"{file.path.name}: rotary over {rotary} of {head_dim} channels of a head is not supported.")
    if kind.model_type == "gemma2" or kind.model_type == "gemma3_text":
        settings["query_pre_attn_scalar"] = _gemma_scale(settings, head_dim)
    if kind.model_type == "stablelm":
        # As llama.cpp tells: its converter writes True where config.json has nothing, which means False there.
        settings["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in tensors
    settings |= {key: bias in tensors for key, bias in _BIASES.items()}
    settings["pad_token_id"] = 0  # nothing is padded, but torch wants it inside the vocabulary
    scaling = _rope_scaling(file, name, settings, rotary)
    return AutoConfig.for_model(
        kind.model_type,
        **settings,
        **({"rope_scaling": scaling} if scaling else {}),
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        tie_word_embeddings="output.weight" not in tensors,
    )


_BIASES = {
    "attention_bias": "blk.0.attn_q.bias",
    "mlp_bias": "blk.0.ffn_up.bias",
    "use_qkv_bias": "blk.0.attn_q.bias",  # StableLM's word for it
}


def _gemma_scale(settings: Mapping[str, Any], head_dim: int) -> int:
    """Attention is scaled by the head's size, but in the two 27B models by the channels of a head (llama.cpp knows
    them by their number of layers too)."""
    layers = {True: 46, False: 62}["attn_logit_softcapping" in settings]
    largest = settings["num_hidden_layers"] == layers
    return int(settings["hidden_size"] // settings["num_attention_heads"] if largest else head_dim)


def _rope_scaling(file: Any, name: str, settings: Mapping[str, Any], rotary: int) -> dict[str, Any] | None:
    """rope_scaling as transformers has it, or None; a type we do not support is refused later, by its name."""
    kind = file.value(f"{name}.rope.scaling.type", "none")
    if "rope_factors_long.weight" in file.tensors:
        return _longrope(file, name, settings, rotary)
    if "rope_freqs.weight" in file.tensors:
        return _llama3(file, settings, rotary)
    if kind == "none":
        return None
    found = {"rope_type": kind, "factor": file.value(f"{name}.rope.scaling.factor", 1.0)}
    for key, setting in _YARN.items() if kind == "yarn" else ():
        if (value := file.value(f"{name}.rope.scaling.{key}")) is not None:
            found[setting] = value
    return found


def _longrope(file: Any, name: str, settings: Mapping[str, Any], rotary: int) -> dict[str, Any]:
    """Phi-3's scaling. By how much it sharpens attention follows from the two contexts, and is checked where stored."""
    factors = {}
    for kind in ("long", "short"):
        tensor = file.tensors.get(f"rope_factors_{kind}.weight")
        factors[f"{kind}_factor"] = [] if tensor is None else tensor.data.tolist()
    original = settings.get("original_max_position_embeddings", 0)
    longer = settings["max_position_embeddings"] / original if original else 0.0
    sharper = math.sqrt(1 + math.log(longer) / math.log(original)) if longer > 1 else 1.0
    stored = file.value(f"{name}.rope.scaling.attn_factor", sharper)
    whole = all(len(each) == rotary // 2 for each in factors.values())
    if name == "phi3" and original and whole and math.isclose(stored, sharper, rel_tol=1e-5):
        return {"type": "longrope", **factors}
    raise ExportError(
        f"{file.path.name} scales its rotary frequencies in a way that is not Phi-3's longrope "
        "(rope_factors_long.weight, rope.scaling.attn_factor); pass the original checkpoint's folder instead."
    )


def _llama3(file: Any, settings: Mapping[str, Any], rotary: int) -> dict[str, Any]:
    """Llama 3.1's scaling. Stored is the divisor of every frequency; its four parameters are found, and checked by it.

    Low and high are 1 and 4 in every Llama, the context a power of two.
    """
    divisors = np.asarray(file.tensors["rope_freqs.weight"].data, np.float64)
    factor, theta = float(divisors.max()), float(settings.get("rope_theta", 10000.0))
    waves = 2 * np.pi * theta ** (np.arange(0, rotary, 2) / rotary)
    low, high = 1.0, 4.0
    for context in (1 << power for power in range(6, 18)):
        smooth = np.clip((context / waves - low) / (high - low), 0, 1)
        if len(divisors) == len(waves) and np.allclose(1 / ((1 - smooth) / factor + smooth), divisors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise ExportError(
        f"{file.path.name} scales its rotary frequencies in a way that is not Llama 3's (rope_freqs.weight); "
        "pass the original checkpoint's folder instead."
    )
