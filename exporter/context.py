"""How many tokens of context a page offers: what a model's KV cache costs decides, not what it was trained for."""

from __future__ import annotations

from typing import Any

from exporter.errors import ExportError
from exporter.modules import longrope_switch

MAX_CONTEXT = 8192
"""Tokens that a page offers at most: at a browser's speed a longer prompt takes minutes to read."""

KV_MEMORY = 2 << 30
"""Bytes that a full KV cache may take in float32, as ORT Web holds it (our CPU kernels: about a quarter, in int8). It
lies beside the weights in one 4 GiB WASM memory, or on a GPU of 4 GB."""

_STEP = 256


def head_dim(config: Any) -> int:
    """Columns of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads(config: Any) -> int:
    """Key and value heads of a layer."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def kv_bytes(config: Any) -> int:
    """Bytes of KV cache that one token takes in float32, over all layers."""
    return 2 * 4 * int(config.num_hidden_layers) * kv_heads(config) * head_dim(config)


def context_of(config: Any, wanted: int = 0) -> int:
    """Tokens of context to export for: ``wanted`` if given, else what a page can hold.

    That is the model's own context, at most MAX_CONTEXT, at most what KV_MEMORY holds, and for a longrope model not
    past its switch: beyond, keys already cached keep the short table's rotation. (torch's ``generate`` then reads the
    whole conversation anew; a page that stays below never has to.) Whoever wants more says so with --context.

    Raises ExportError where ``wanted`` is more than the model was made for.
    """
    most = int(config.max_position_embeddings)
    if wanted > most:
        raise ExportError(f"{config.model_type}: this model has {most} tokens of context, so {wanted} cannot be had.")
    if wanted:
        return wanted
    fits = max(_STEP, KV_MEMORY // kv_bytes(config) // _STEP * _STEP)
    return min(most, MAX_CONTEXT, fits, longrope_switch(config) or most)
