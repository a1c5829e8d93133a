"""Tiny models of every architecture that a GGUF is read of: what config.json has of each, and what its GGUF says."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tiny_checkpoint

_COMMON: dict[str, Any] = {
    "vocab_size": tiny_checkpoint.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "rope_theta": 10000.0,
    "pad_token_id": 0,
}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_STABLELM = {"partial_rotary_factor": 0.5, "num_attention_heads": 2, "num_key_value_heads": 1}
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 48}

# name: (GGUF architecture, what the config has beside _COMMON, what the GGUF has beside tiny_gguf's own metadata)
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {"model_type": "llama", "tie_word_embeddings": True}, {}),
    "llama-biased": ("llama", {"model_type": "llama", "attention_bias": True, "head_dim": 32}, {}),
    "llama3": (
        "llama",
        {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": _LLAMA3 | {"original_max_position_embeddings": 64}},
        {},
    ),
    "llama-wide": (  # superblocks take 256 columns; smaller weights, for logits of the other models' size
        "llama",
        {
            "model_type": "llama",
            "hidden_size": 256,
            "intermediate_size": 512,
            "initializer_range": 0.1,
            "tie_word_embeddings": True,
        },
        {},
    ),
    "gemma": (
        "gemma",
        {"model_type": "gemma", "head_dim": 32, "num_key_value_heads": 1, "hidden_activation": "gelu_pytorch_tanh"},
        {},
    ),
    "gemma2": (
        "gemma2",
        {"model_type": "gemma2", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0} | _GEMMA,
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3": (
        "gemma3",
        {"model_type": "gemma3_text", "sliding_window_pattern": 2, "rope_theta": 1e6} | _GEMMA,
        {"attention.sliding_window_pattern": 2},
    ),
    "phi2": (
        "phi2",
        {
            "model_type": "phi",
            "partial_rotary_factor": 0.5,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
        },
        {"rope.dimension_count": 16},
    ),
    "phi3": (
        "phi3",
        {
            "model_type": "phi3",
            "sliding_window": 48,
            "partial_rotary_factor": 0.5,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        {"rope.dimension_count": 16},
    ),
    "phi3-longrope": (
        "phi3",
        {
            "model_type": "phi3",
            "sliding_window": 1024,  # which no text here reaches
            "original_max_position_embeddings": tiny_checkpoint.SWITCH,
            "rope_scaling": {"type": "longrope"},
        },
        {"rope.scaling.original_context_length": tiny_checkpoint.SWITCH},
    ),
    "qwen2": ("qwen2", {"model_type": "qwen2", "tie_word_embeddings": True}, {}),
    "qwen2-yarn": (
        "qwen2",
        {
            "model_type": "qwen2",
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        },
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128},
    ),
    "qwen3": ("qwen3", {"model_type": "qwen3", "head_dim": 32}, {}),
    "smollm3": ("smollm3", {"model_type": "smollm3", "num_hidden_layers": 4}, {}),
    "granite": (
        "granite",
        {
            "model_type": "granite",
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
        {"embedding_scale": 3.0, "attention.scale": 0.2, "residual_scale": 0.5, "logit_scale": 2.0},
    ),
    "olmo2": ("olmo2", {"model_type": "olmo2"}, {}),
    "stablelm": (  # the converter says that it is parallel, since its config.json says nothing
        "stablelm",
        {"model_type": "stablelm", "use_qkv_bias": True} | _STABLELM,
        {"rope.dimension_count": 16, "use_parallel_residual": True},
    ),
    "stablelm-parallel": (
        "stablelm",
        {"model_type": "stablelm", "use_parallel_residual": True} | _STABLELM,
        {"rope.dimension_count": 16, "use_parallel_residual": True},
    ),
}


@cache
def model(family: str) -> Any:
    """Eager torch with seeded random weights; norms and biases get noise too, or a lost one would not show."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**tiny_checkpoint.with_factors(_COMMON | FAMILIES[family][1]))
    made = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made
