"""Tiny random checkpoints with the real structure of each architecture, and a tokenizer trained on our own text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from exporter.verify import TEXT

VOCABULARY = 512
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}<s>assistant: "

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-untied": {"model_type": "llama", "tie_word_embeddings": False},
    "llama3-rope": {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": _LLAMA3_ROPE, "head_dim": 32},
    "gemma": {
        "model_type": "gemma",
        "head_dim": 256,
        "num_key_value_heads": 1,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 32,
        "sliding_window": 48,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "sliding_window": 48,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 24,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 48},
    "phi": {"model_type": "phi", "partial_rotary_factor": 0.5, "hidden_size": 128, "num_key_value_heads": 4},
    "phi3": {"model_type": "phi3", "sliding_window": 48},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0, 1], "use_sliding_window": False},
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "olmo2": {"model_type": "olmo2"},
}


@cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE of VOCABULARY tokens; <pad>, <s> and </s> are 0, 1 and 2."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT.read_text("utf-8")], trainer)
    return made


def config(name: str) -> Any:
    """The transformers config of an architecture in ARCHITECTURES."""
    return AutoConfig.for_model(**(_COMMON | ARCHITECTURES[name]))


def model(name: str) -> Any:
    """Eager torch with seeded random weights; norms and biases get noise too, or a lost one would not show."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config(name), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter_name, parameter in made.named_parameters():
            if parameter_name.endswith(("norm.weight", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def save(name: str, folder: Path, *, chat: bool = True) -> Path:
    """Write the checkpoint ``name`` to ``folder`` as the Hub would have it, a base model's without a chat template."""
    model(name).save_pretrained(folder, safe_serialization=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE if chat else None
    fast.save_pretrained(folder)
    (folder / "LICENSE").write_text("Public domain.\n", encoding="utf-8")
    return folder
