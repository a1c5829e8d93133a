"""Tiny models as GGUF files, written with the gguf package the way llama.cpp's converter writes each architecture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tiny_checkpoint

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.dense": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.fc1": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.fc2": "ffn_down",
}
TWO_NORMS = {"gemma2", "gemma3", "olmo2"}
"""Architectures that have a norm after attention, and so another name for it."""

PERMUTED = {"llama", "smollm3", "granite"}
GEMMAS = {"gemma", "gemma2", "gemma3"}

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
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 48}

# name: (GGUF architecture, what the config has beside _COMMON, what the GGUF has beside _KEYS)
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
    "qwen2": ("qwen2", {"model_type": "qwen2", "tie_word_embeddings": True}, {}),
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
}


@cache
def model(family: str) -> Any:
    """Eager torch with seeded random weights; norms and biases get noise too, or a lost one would not show."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**(_COMMON | FAMILIES[family][1]))
    made = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def gguf_name(architecture: str, parameter: str) -> str:
    base, _, suffix = parameter.rpartition(".")
    if not base.startswith("model.layers."):
        return f"{NAMES[base]}.{suffix}"
    _, _, layer, rest = base.split(".", 3)
    name = "post_attention_norm" if architecture in TWO_NORMS and rest.startswith("post_att") else NAMES[rest]
    return f"blk.{layer}.{name}.{suffix}"


def permuted(weights: Any, heads: int) -> Any:
    """convert_hf_to_gguf's LlamaModel.permute."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def _metadata(architecture: str, config: Any, more: dict[str, Any]) -> dict[str, Any]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": head_dim,
        "vocab_size": config.vocab_size,
    }
    if hasattr(config, "rms_norm_eps"):
        found["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    else:
        found["attention.layer_norm_epsilon"] = config.layer_norm_eps
    if head_dim * config.num_attention_heads != config.hidden_size:
        found |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if architecture in ("gemma2", "gemma3", "phi3"):
        found["attention.sliding_window"] = config.sliding_window
    return found | more


def _add(writer: Any, key: str, value: Any) -> None:
    kinds = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    kinds[type(value)](key, value)


def rope_divisors(scaling: dict[str, Any], theta: float, dim: int) -> Any:
    """What the converter writes as rope_freqs.weight: by how much each frequency is divided."""
    divisors = []
    for i in range(0, dim, 2):
        turns = scaling["original_max_position_embeddings"] / (2 * np.pi * theta ** (i / dim))
        smooth = (turns - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
        smooth = min(1.0, max(0.0, smooth))
        divisors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(divisors, np.float32)


def random_blocks(kind: str, rows: int, columns: int, spread: float, seed: int = 0) -> Any:
    """Random bytes of a K format, uint8 [rows, bytes a row], whose weights have about the standard deviation."""
    size, count = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, columns // size, count), np.uint8)
    if kind == "Q6_K":
        halves = {208: spread / 1100}
    else:
        step = spread / (240 if kind == "Q4_K" else 480)
        halves = {0: step, 2: step * (7.5 if kind == "Q4_K" else 15.5)}
    for at, value in halves.items():
        scales = (value * rng.uniform(0.5, 1.5, data.shape[:2])).astype(np.float16)
        data[..., at : at + 2] = scales[..., None].view(np.uint8)
    return data.reshape(rows, -1)


def pack(kind: str, weights: Any, seed: int) -> Any:
    """``weights`` as ``kind``, uint8 [rows, bytes a row]; for the K formats random weights of that spread."""
    quant = gguf.GGMLQuantizationType[kind]
    if kind in ("Q4_K", "Q5_K", "Q6_K"):  # the gguf package reads these formats and does not write them
        return random_blocks(kind, *weights.shape, float(weights.std()), seed)
    return gguf.quants.quantize(np.ascontiguousarray(weights), quant)


def write(
    path: Path,
    kinds: Sequence[str] = ("Q4_1",),
    family: str = "llama",
    table: str = "Q8_0",
    pre: str = "gpt-2",
    tokenizer_model: str = "gpt2",
    metadata: dict[str, Any] | None = None,
    architecture: str = "",
    divisors: Any = None,
) -> dict[str, torch.Tensor]:
    """Write ``family`` with its matrices as ``kinds`` in turn, the embedding as ``table``; what weights it has."""
    known, _, more = FAMILIES[family]
    architecture = architecture or known
    made = model(family)
    config = made.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_license("cc0-1.0")
    for key, value in (_metadata(architecture, config, more) | (metadata or {})).items():
        _add(writer, f"{architecture}.{key}", value)
    _add_tokenizer(writer, pre, tokenizer_model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if getattr(config, "rope_scaling", None):
        divisors = rope_divisors(config.rope_scaling, config.rope_theta, head_dim)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    stands_for, turn = {}, cycle(kinds)
    for seed, (name, parameter) in enumerate(made.named_parameters()):
        array = parameter.detach().numpy()
        part = name.split(".")[-2]
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(part, 0)
        permute = bool(heads) and architecture in PERMUTED
        kind = "F32" if array.ndim == 1 else table if "embed" in name else next(turn)
        stored = permuted(array, heads) if permute else array
        if architecture in GEMMAS and name.endswith("norm.weight"):
            stored = stored + np.float32(1)
        if kind == "F32":
            writer.add_tensor(gguf_name(architecture, name), np.ascontiguousarray(stored))
            stands_for[name] = torch.from_numpy(array)
            continue
        quant = gguf.GGMLQuantizationType[kind]
        packed = pack(kind, stored, seed)
        writer.add_tensor(gguf_name(architecture, name), packed, raw_dtype=quant)
        weights = torch.from_numpy(gguf.quants.dequantize(packed, quant))
        if permute:
            back = permuted(np.arange(len(array))[:, None], heads)[:, 0]
            weights = weights[torch.from_numpy(np.argsort(back))]
        stands_for[name] = weights
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stands_for


def _add_tokenizer(writer: Any, pre: str, tokenizer_model: str) -> None:
    made = json.loads(tiny_checkpoint.tokenizer().to_str())
    vocabulary = sorted(made["model"]["vocab"].items(), key=lambda item: item[1])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in made["model"]["merges"]]
    writer.add_tokenizer_model(tokenizer_model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if index < 3 else 1 for _, index in vocabulary])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(tiny_checkpoint.TEMPLATE)


def split(path: Path, count: int) -> list[Path]:
    """``path`` as ``count`` files, the way llama.cpp's gguf-split does it: all metadata in the first."""
    reader = gguf.GGUFReader(path)
    parts = [path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}.gguf") for number in range(count)]
    tensors: list[Any] = list(reader.tensors)
    for number, part in enumerate(parts):
        writer = gguf.GGUFWriter(part, reader.get_field("general.architecture").contents())  # type: ignore[union-attr]
        for name, field in reader.fields.items():
            if number == 0 and not name.startswith("GGUF.") and name != "general.architecture":
                kind = field.types[0]
                writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(tensors))
        for tensor in tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts
