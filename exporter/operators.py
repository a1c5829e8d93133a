"""ONNX Runtime's operators as torch functions: TorchScript tracing calls ``symbolic`` and the operator is in the graph.

``forward`` only makes a tensor of the right shape and dtype. Tracing never reads the values, and verify compares the
finished graph with eager torch, so a second implementation here would be one more thing to be wrong.
The operators are specified in onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.onnx import symbolic_helper

SWAP_HEADS = [0, 2, 1, 3]


def _kind(value: Any) -> str:
    return str(value.node().kind())


def _input(value: Any, index: int = 0) -> Any:
    return list(value.node().inputs())[index]


def _none(graph: Any) -> Any:
    return symbolic_helper._optional_input_placeholder_tensor(graph)  # type: ignore[no-untyped-call]


def _int64(graph: Any, *numbers: int) -> Any:
    return graph.op("Constant", value_t=torch.tensor(numbers, dtype=torch.int64))


def _is_swap(value: Any) -> bool:
    # "is" is the attribute reader of TorchScript's node for lists of ints, and a Python keyword.
    return _kind(value) == "onnx::Transpose" and list(getattr(value.node(), "is")("perm")) == SWAP_HEADS


def _constant(value: Any) -> Any:
    if _kind(value) == "onnx::Unsqueeze":
        inner = _constant(_input(value))
        return inner if inner is None or isinstance(inner, list) else [inner]
    return value.node().t("value").tolist() if _kind(value) == "onnx::Constant" else None


def _slice_of(value: Any) -> tuple[Any, int, int] | None:
    """(source, start, end) where ``value`` is a Slice with constant bounds."""
    if _kind(value) != "onnx::Slice":
        return None
    start, end = _constant(_input(value, 1)), _constant(_input(value, 2))
    return None if start is None or end is None else (_input(value), start[0], end[0])


def _rows_of_heads(graph: Any, value: Any) -> Any:
    """[batch, heads, tokens, head_dim] → [batch, tokens, heads · head_dim], undoing the model's view and transpose."""
    if _kind(value) == "onnx::Concat":  # partial rotary: cat(rotated, passed) of two slices of one tensor
        parts = [_slice_of(part) for part in value.node().inputs()]
        if all(parts) and len({part[0].debugName() for part in parts if part}) == 1 and parts[0]:
            value = parts[0][0]
    if not _is_swap(value):
        return graph.op("Reshape", graph.op("Transpose", value, perm_i=SWAP_HEADS), _int64(graph, 0, 0, -1))
    value = _input(value)
    if _kind(value) == "onnx::Reshape" and _input(value).type().dim() in (3, None):
        return _input(value)
    return graph.op("Reshape", value, _int64(graph, 0, 0, -1))


class MatMulNBits(Function):
    """x float32 [batch, tokens, columns] times block-quantized weights [rows, columns] → [batch, tokens, rows].

    ``zeros`` is None, packed uint8, or float32 [rows · blocks]; ``scales`` float32 [rows · blocks] or [rows, blocks].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        bias: Tensor | None,
        rows: int,
        columns: int,
        bits: int,
        block_size: int,
    ) -> Tensor:
        return x.new_zeros((*x.shape[:-1], rows))

    @staticmethod
    def symbolic(
        graph: Any, x: Any, codes: Any, scales: Any, zeros: Any, bias: Any, rows: int, columns: int, bits: int,
        block_size: int,
    ) -> Any:  # fmt: skip
        if _kind(x) == "onnx::Reshape" and _kind(_input(x)) == "com.microsoft::GroupQueryAttention":
            x = _input(x)  # the model's reshape of attention's output, which has that shape already
        inputs = [x, codes, scales]
        if zeros is not None or bias is not None:
            inputs.append(_none(graph) if zeros is None else zeros)
        if bias is not None:
            inputs += [_none(graph), bias]
        y = graph.op(
            "com.microsoft::MatMulNBits",
            *inputs,
            K_i=columns,
            N_i=rows,
            bits_i=bits,
            block_size_i=block_size,
            accuracy_level_i=0,
        )
        y.setType(x.type().with_sizes([None, None, rows]))
        return y


class GatherBlockQuantized(Function):
    """ids int64 [batch, tokens] → rows of a block-quantized embedding, float32 [batch, tokens, columns]."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, columns: int, bits: int,
        block_size: int,
    ) -> Tensor:  # fmt: skip
        return scales.new_zeros((*ids.shape, columns))

    @staticmethod
    def symbolic(
        graph: Any, ids: Any, codes: Any, scales: Any, zeros: Any, columns: int, bits: int, block_size: int
    ) -> Any:
        # ``codes`` stays lm_head's [rows, blocks, bytes] initializer; graph.py replaces the Reshape by an alias.
        data = graph.op("Reshape", codes, _int64(graph, 0, -1))
        y = graph.op(
            "com.microsoft::GatherBlockQuantized",
            data,
            ids,
            scales,
            *([] if zeros is None else [zeros]),
            gather_axis_i=0,
            quantize_axis_i=1,
            block_size_i=block_size,
            bits_i=bits,
        )
        y.setType(scales.type().with_sizes([None, None, columns]))
        return y


class SimplifiedLayerNormalization(Function):
    """RMSNorm over the last axis: x · weight / sqrt(mean(x²) + epsilon)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return x * 1.0

    @staticmethod
    def symbolic(graph: Any, x: Any, weight: Any, epsilon: float) -> Any:
        def norm(value: Any) -> Any:
            return graph.op("SimplifiedLayerNormalization", value, weight, axis_i=-1, epsilon_f=epsilon, stash_type_i=1)

        def with_heads(value: Any) -> Any:
            """The reshape that splits heads, with batch and tokens copied (0) instead of computed from shapes."""
            if _kind(value) == "onnx::Reshape" and _kind(_input(value)) == "com.microsoft::MatMulNBits":
                return graph.op("Reshape", _input(value), _int64(graph, 0, 0, -1, weight.type().sizes()[-1]))
            return value

        if _is_swap(x):  # a norm over head_dim commutes with the swap of heads and tokens
            y = graph.op("Transpose", norm(with_heads(_input(x))), perm_i=SWAP_HEADS)
        else:
            y = norm(with_heads(x))
        y.setType(x.type())
        return y


class GroupQueryAttention(Function):
    """Causal attention with the KV cache appended inside.

    q float32 [1, heads, tokens, head_dim], k and v [1, kv_heads, tokens, head_dim], past [1, kv_heads, past, head_dim]
    → output [1, tokens, heads · head_dim] and both presents [1, kv_heads, past + tokens, head_dim]. With ``cos`` and
    ``sin`` [context, rotary_dim / 2] the operator rotates q and k itself. ``window`` -1 means none, ``softcap`` 0 none.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, past_key: Tensor, past_value: Tensor, seqlens_k: Tensor,
        total: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, kv_heads: int, head_dim: int, scale: float,
        window: int, softcap: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        batch, _, tokens, _ = q.shape
        present = (batch, kv_heads, past_key.shape[2] + tokens, head_dim)
        return q.new_zeros((batch, tokens, heads * head_dim)), q.new_zeros(present), q.new_zeros(present)

    @staticmethod
    def symbolic(
        graph: Any, q: Any, k: Any, v: Any, past_key: Any, past_value: Any, seqlens_k: Any, total: Any,
        cos: Any, sin: Any, heads: int, kv_heads: int, head_dim: int, scale: float, window: int, softcap: float,
    ) -> Any:  # fmt: skip
        q, k, v = (_rows_of_heads(graph, value) for value in (q, k, v))
        slices = [_slice_of(value) for value in (q, k, v)]
        if all(slices) and len({part[0].debugName() for part in slices if part}) == 1:
            starts = [part[1] for part in slices if part]
            if starts == [0, heads * head_dim, (heads + kv_heads) * head_dim] and slices[0]:
                q, k, v = slices[0][0], _none(graph), _none(graph)  # packed QKV goes in whole
        y, present_key, present_value = graph.op(
            "com.microsoft::GroupQueryAttention",
            *(q, k, v, past_key, past_value, seqlens_k, total),
            *([] if cos is None else [cos, sin]),
            outputs=3,
            num_heads_i=heads,
            kv_num_heads_i=kv_heads,
            scale_f=scale,
            local_window_size_i=window,
            softcap_f=softcap,
            do_rotary_i=int(cos is not None),
            rotary_interleaved_i=0,
        )
        y.setType(past_key.type().with_sizes([None, None, heads * head_dim]))
        for present in (present_key, present_value):
            present.setType(past_key.type().with_sizes([None, kv_heads, None, head_dim]))
        return y, present_key, present_value


def split(graph: Any, value: Any, chunks: int, dim: int) -> Any:
    """``Tensor.chunk`` as one Split; torch's own form computes the bounds from the shape, node by node (opset ≥ 18)."""
    return graph.op("Split", value, axis_i=dim, num_outputs_i=chunks, outputs=chunks)
