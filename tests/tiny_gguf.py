"""Tiny models as GGUF files, written with the gguf package the way llama.cpp's converter writes each architecture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

import tiny_checkpoint
from tiny_gguf_families import FAMILIES, model

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
    if _scaling(config) == "longrope":
        original = config.original_max_position_embeddings
        longer = config.max_position_embeddings / original
        found["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(longer) / math.log(original))
    return found | more


def _scaling(config: Any) -> str:
    """The kind of rotary scaling, "" for none."""
    scaling = getattr(config, "rope_scaling", None) or {}
    return str(scaling.get("rope_type", scaling.get("type", "")))


def _add(writer: Any, key: str, value: Any) -> None:
    kinds = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array,
        str: writer.add_string,
    }  # fmt: skip
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
    chat: bool = True,
    tokenizer: dict[str, Any] | None = None,
    more_tensors: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """Write ``family`` with its matrices as ``kinds`` in turn, the embedding as ``table``; what weights it has.

    ``metadata`` goes under the architecture's name and ``tokenizer`` under tokenizer.ggml; ``chat`` is whether there is
    a chat template, and ``more_tensors`` are names of vectors that the family does not have.
    """
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
    if chat:
        writer.add_chat_template(tiny_checkpoint.TEMPLATE)
    for key, value in (tokenizer or {}).items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    for name in more_tensors:
        writer.add_tensor(name, np.ones(config.hidden_size, np.float32))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if _scaling(config) == "llama3":
        divisors = rope_divisors(config.rope_scaling, config.rope_theta, head_dim)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    if _scaling(config) == "longrope":
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(config.rope_scaling[f"{kind}_factor"], "f4"))
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
