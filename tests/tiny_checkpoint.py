"""Tiny random checkpoints with the real structure of every recipe, and a tokenizer trained on our own text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from exporter.blocks import BLOCK_SIZE
from exporter.recipes import RECIPES
from exporter.support import COLUMNS
from exporter.verify import TEXT

VOCABULARY = 512
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}<s>assistant: "

_TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONTEXT = 512
WINDOW = 48
SWITCH = 64
"""Tokens at which longrope turns to its long table, and the trained length of a llama3 rope."""

_SMALL: dict[str, Any] = _TOKENS | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "rope-linear": {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "rope-dynamic": {"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "rope-yarn": {
        "model_type": "qwen2",
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    },
    "gemma": {
        "model_type": "gemma",
        "head_dim": 256,
        "num_key_value_heads": 1,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 32,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    },
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "nemotron": {"model_type": "nemotron", "partial_rotary_factor": 1.0},
}
"""Structures that no recipe has, and three small ones that other tests export."""


def _shrunk(published: dict[str, Any]) -> dict[str, Any]:
    """A recipe's config with its structure kept and its sizes cut down.

    Kept: heads to a KV head (the KV heads cut to two or four), whether heads fill the hidden size, the rotated share
    of a head, ties, biases, multipliers, rope type and layer pattern. What has an effect only from some length on (a
    window, the switch of longrope) or some magnitude on (soft-capping) is cut down with the rest, so that tests reach
    it.
    """
    full = AutoConfig.for_model(**with_factors(published))
    own_head_dim = getattr(full, "head_dim", None) or full.hidden_size // full.num_attention_heads
    rotated = getattr(full, "partial_rotary_factor", 1.0)
    parts = (own_head_dim // cut for cut in (4, 2, 1))
    head_dim = next(size for size in parts if not size % COLUMNS and not int(size * rotated) % COLUMNS)
    group = full.num_attention_heads // full.num_key_value_heads
    counts = (1,) if full.num_key_value_heads == 1 else (2, 4)
    kv_heads = next(count for count in counts if count * group * head_dim % BLOCK_SIZE == 0)
    heads = kv_heads * group
    fills = own_head_dim * full.num_attention_heads == full.hidden_size
    hidden = heads * head_dim if fills else 96
    # One value a layer of whatever differs between layers: the shortest model that has every kind of layer.
    kinds = [getattr(full, key) for key in ("layer_types", "no_rope_layers") if getattr(full, key, None)]
    layers = list(zip(*kinds, strict=True)) if kinds else []
    sizes = {
        "num_hidden_layers": max([3, *(layers.index(kind) + 1 for kind in set(layers))]),
        "hidden_size": hidden,
        "intermediate_size": 160,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 1.6 * hidden**-0.5,
    }
    cut: dict[str, Any] = {
        "head_dim": head_dim,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 24,
        "original_max_position_embeddings": SWITCH,
    }
    if published.get("sliding_window"):
        reached = published["sliding_window"] < published["max_position_embeddings"]
        cut["sliding_window"] = WINDOW if reached else 2 * CONTEXT
    config = published | _TOKENS | sizes | {key: value for key, value in cut.items() if key in published}
    if "original_max_position_embeddings" in config.get("rope_scaling", {}):
        config["rope_scaling"] = config["rope_scaling"] | {"original_max_position_embeddings": SWITCH}
    return with_factors(config)


def with_factors(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` with factors for longrope, a list of numbers per model that a recipe leaves out."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("type") != "longrope":
        return config
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    frequencies = int(head_dim * config.get("partial_rotary_factor", 1.0)) // 2
    factors = {
        "short_factor": [1.0 + 0.02 * i for i in range(frequencies)],
        "long_factor": [1.0 + 0.5 * i for i in range(frequencies)],
    }
    return config | {"rope_scaling": scaling | factors}


@cache
def configs() -> dict[str, dict[str, Any]]:
    """Every structure there is by name: VARIANTS, and the recipes whose shrunk config no earlier recipe has."""
    found: dict[str, dict[str, Any]] = {}
    for recipe in RECIPES:
        shrunk = _shrunk(recipe.config)
        if shrunk not in found.values():
            found[recipe.name] = shrunk
    return found | {name: _SMALL | variant for name, variant in VARIANTS.items()}


def structure_of(name: str) -> str:
    """The structure that a recipe's model has: its own name, or that of the first recipe that shares it."""
    recipe = next(recipe for recipe in RECIPES if recipe.name == name)
    shrunk = _shrunk(recipe.config)
    return next(structure for structure, config in configs().items() if config == shrunk)


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
    """The transformers config of a structure in configs()."""
    return AutoConfig.for_model(**configs()[name])


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
