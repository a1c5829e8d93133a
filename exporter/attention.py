"""Attention as one operator: transformers' AttentionInterface, cache and rotary function, made to trace to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from exporter.modules import Current
from exporter.operators import GroupQueryAttention

ATTENTION = "handbill_group_query_attention"


class NewKeysOnly(Cache):  # type: ignore[misc]
    """update() gives back only the new keys and values: the operator appends them to the past itself."""

    def __init__(self, length: int) -> None:
        super().__init__(layers=[])
        self._length = length

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: Any = None) -> Any:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None,
    sliding_window: int | None = None, softcap: float | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The AttentionInterface function that traces to GroupQueryAttention."""
    step = Current.step
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    past_key, past_value = step.past[layer]
    # A layer without position embedding (NoPE) never called apply_rotary_pos_emb, so nothing is left here for it.
    cos, sin = step.rotary or (None, None)
    step.rotary = None
    heads, kv_heads, head_dim = int(query.shape[1]), int(key.shape[1]), int(query.shape[3])
    y, present_key, present_value = GroupQueryAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, past_key, past_value, step.seqlens_k, step.total, cos, sin, heads, kv_heads, head_dim,
        float(head_dim**-0.5 if scaling is None else scaling), int(sliding_window or -1), float(softcap or 0.0),
    )  # fmt: skip
    step.present[layer] = (present_key, present_value)
    return y, None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)


class PlainAttention(nn.Module):
    """Stands in for an attention that its model writes out in torch instead of calling AttentionInterface (StableLM).

    That is: q, k and v are projections of the input and nothing else, rotated over their first columns by the layer's
    tables, scaled by 1/√head_dim, causal, and the result goes through o_proj. Whether the model's own attention did
    that is not read from its code: verify compares the two.
    """

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether ``module`` is made of the four projections, with nothing besides but dropout and rotary tables."""
        children = {name: child for name, child in module.named_children() if not isinstance(child, nn.Dropout)}
        children.pop("rotary_emb", None)
        return set(children) == {"q_proj", "k_proj", "v_proj", "o_proj"} and hasattr(module, "layer_idx")

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.layer_idx = int(module.layer_idx)
        self.head_dim = int(module.head_dim)
        self.q_proj, self.k_proj, self.v_proj = module.q_proj, module.k_proj, module.v_proj
        self.o_proj = module.o_proj

    def forward(
        self, hidden_states: Tensor, *_: Any, position_embeddings: tuple[Tensor, Tensor], **__: Any
    ) -> tuple[Tensor, None]:
        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        q, k, v = (part(hidden_states).view(shape).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        Current.step.rotary = position_embeddings
        return self.o_proj(_attention(self, q, k, v, None)[0]), None


def _hand_over_tables(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """Stands in for apply_rotary_pos_emb: the operator rotates, so only remember by which tables."""
    Current.step.rotary = (cos, sin)
    return q, k


@contextmanager
def rotary_inside(modules: set[str]) -> Iterator[None]:
    """Patch ``apply_rotary_pos_emb`` of the named Python modules; left patched, eager models in this process break."""
    saved = {name: vars(sys.modules[name])["apply_rotary_pos_emb"] for name in modules}
    try:
        for name in modules:
            setattr(sys.modules[name], "apply_rotary_pos_emb", _hand_over_tables)  # noqa: B010
        yield
    finally:
        for name, function in saved.items():
            setattr(sys.modules[name], "apply_rotary_pos_emb", function)  # noqa: B010
