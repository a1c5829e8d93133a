"""A tiny llama as a GGUF file, written with the gguf package the way llama.cpp's converter writes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

import tiny_checkpoint

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(parameter: str) -> str:
    base, _, suffix = parameter.rpartition(".")
    if base.startswith("model.layers."):
        _, _, layer, rest = base.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{suffix}"
    return f"{NAMES[base]}.{suffix}"


def permuted(weights: Any, heads: int) -> Any:
    """convert_hf_to_gguf's LlamaModel.permute."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def write(path: Path, kind: str = "Q4_1", pre: str = "gpt-2", tokenizer_model: str = "gpt2") -> dict[str, torch.Tensor]:
    """Write the tiny llama with its matrices as ``kind`` (embedding Q8_0); the float32 weights it stands for."""
    config, model = tiny_checkpoint.config("llama"), tiny_checkpoint.model("llama")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license("cc0-1.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, pre, tokenizer_model)
    stands_for = {}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(name.split("_proj")[0][-1:], 0)
        heads = heads if "q_proj" in name or "k_proj" in name else 0
        stored = permuted(array, heads) if heads else array
        if array.ndim == 1:
            writer.add_tensor(gguf_name(name), stored)
            stands_for[name] = torch.from_numpy(array)
            continue
        quant = gguf.GGMLQuantizationType["Q8_0" if "embed" in name else kind]
        packed = gguf.quants.quantize(np.ascontiguousarray(stored), quant)
        writer.add_tensor(gguf_name(name), packed, raw_dtype=quant)
        # Quantizing goes row by row along columns, so permuting rows before or after gives the same blocks.
        stands_for[name] = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(array, quant), quant))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stands_for


def _add_tokenizer(writer: Any, pre: str, tokenizer_model: str) -> None:
    import json

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
