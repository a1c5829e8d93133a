"""Torch modules over Blocks that trace to ONNX Runtime's operators, and the step that they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.blocks import Blocks, pack_zeros
from exporter.errors import ExportError
from exporter.operators import GatherBlockQuantized, MatMulNBits, SimplifiedLayerNormalization


@dataclass
class Step:
    """What one traced forward pass shares between modules that the model's own code keeps apart."""

    past: list[tuple[Tensor, Tensor]]
    present: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    seqlens_k: Tensor | None = None
    total: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    scales: dict[int, Tensor] = field(default_factory=dict)
    zeros: dict[int, Tensor] = field(default_factory=dict)


class Current:
    """The step being traced. Tracing is not re-entrant, and neither is this."""

    step: Step


class Scales(nn.Module):
    """float16 scales (or minima) of Blocks, float32 [blocks] when called.

    MatMulNBits wants float32: a Cast (and where GGUF's K formats have integer factors, a Mul), which ONNX Runtime folds
    when it loads the graph. float32 in the shards would cost 1.4 bits a weight more.
    """

    values: Tensor
    factors: Tensor | None

    def __init__(self, values: Tensor, factors: Tensor | None) -> None:
        super().__init__()
        values = values.flatten()
        self.register_buffer("values", values if factors is None else values.unsqueeze(-1))
        self.register_buffer("factors", None if factors is None else factors.reshape(len(values), -1))

    def forward(self) -> Tensor:
        if self.factors is None:
            return self.values.float()
        return (self.values.float() * self.factors.float()).reshape(-1)


class ScaleBank(nn.Module):
    """Scales (and minima) of all linear layers of one form as one tensor: one Cast and one Split serve every layer.

    A weight ``scale · (code - shift) + minimum`` becomes ``scale · (code - zero)`` with the float32 zero point
    ``shift - minimum / scale``: so GGUF's Q4_1 and Q4_K go in without loss at 5 and 4.625 bits a weight.
    """

    def __init__(self, layers: list[QuantizedLinear]) -> None:
        super().__init__()
        blocks = [layer.blocks for layer in layers]
        self.keys = [id(layer) for layer in layers]
        self.sizes = [part.rows * part.codes.shape[1] for part in blocks]
        self.shift = blocks[0].shift
        scales, minima = _joined(blocks, "scales"), _joined(blocks, "minima")
        assert scales is not None
        self.scales = Scales(scales, _joined(blocks, "scale_factors"))
        self.negative_minima = None if minima is None else Scales(-minima, _joined(blocks, "minimum_factors"))

    def fill(self, step: Step) -> None:
        scales = self.scales()
        step.scales.update(zip(self.keys, self._pieces(scales), strict=True))
        if self.negative_minima is not None:
            zeros = self.negative_minima() / scales
            step.zeros.update(zip(self.keys, self._pieces(zeros + self.shift if self.shift else zeros), strict=True))

    def _pieces(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor,) if len(self.sizes) == 1 else torch.split(tensor, self.sizes)


def _joined(blocks: list[Blocks], name: str) -> Tensor | None:
    parts = [getattr(part, name) for part in blocks]
    return None if parts[0] is None else torch.cat([part.flatten() for part in parts])


class QuantizedLinear(nn.Module):
    """nn.Linear over Blocks. Its scales come from the ScaleBank of the step."""

    codes: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, blocks: Blocks, bias: Tensor | None) -> None:
        super().__init__()
        self.blocks = blocks
        self.out_features, self.in_features = blocks.rows, blocks.columns
        self.register_buffer("codes", blocks.codes)
        self.register_buffer("zeros", None if blocks.zeros is None else pack_zeros(blocks.zeros, blocks.bits))
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        step = Current.step
        zeros = step.zeros.get(id(self), self.zeros)
        result: Tensor = MatMulNBits.apply(  # type: ignore[no-untyped-call]
            x,
            self.codes,
            step.scales[id(self)],
            zeros,
            self.bias,
            self.out_features,
            self.in_features,
            self.blocks.bits,
            self.blocks.size,
        )
        return result


class QuantizedTable(QuantizedLinear):
    """A QuantizedLinear that an embedding reads too, so it holds its scales itself, as [rows, blocks]."""

    def __init__(self, blocks: Blocks, bias: Tensor | None) -> None:
        if blocks.minima is not None:
            raise ExportError("An embedding with minima (Q4_1) has no operator to read it; requantize it first.")
        super().__init__(blocks, bias)
        self.scales = Scales(blocks.scales, blocks.scale_factors)

    def fill(self, step: Step) -> None:
        step.scales[id(self)] = self.scales().view(self.out_features, -1)


class QuantizedEmbedding(nn.Module):
    """nn.Embedding over a QuantizedTable; ``scale`` is Gemma's factor on embeddings, or None."""

    def __init__(self, table: QuantizedTable, scale: float | None) -> None:
        super().__init__()
        self.table, self.scale = table, scale

    def forward(self, ids: Tensor) -> Tensor:
        table = self.table
        scales = Current.step.scales[id(table)]
        rows: Tensor = GatherBlockQuantized.apply(  # type: ignore[no-untyped-call]
            ids, table.codes, scales, table.zeros, table.in_features, table.blocks.bits, table.blocks.size
        )
        return rows if self.scale is None else rows * self.scale


class Stacked:
    """q, k and v of a layer as one matrix: the first of its views runs the product, the others slice it."""

    def __init__(self, linear: QuantizedLinear) -> None:
        self.linear = linear
        self.product: Tensor | None = None


class StackedView(nn.Module):
    """Rows [start, end) of a Stacked product."""

    def __init__(self, stacked: Stacked, start: int, end: int) -> None:
        super().__init__()
        self.stacked, self.start, self.end = stacked, start, end
        self.linear = stacked.linear if start == 0 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.start == 0:
            self.stacked.product = self.stacked.linear(x)
        assert self.stacked.product is not None
        return self.stacked.product[..., self.start : self.end]


class Norm(nn.Module):
    """RMSNorm with the weight it multiplies by (1 already added where the model adds it)."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = SimplifiedLayerNormalization.apply(x, self.weight, self.epsilon)  # type: ignore[no-untyped-call]
        return result


class RotaryTable(nn.Module):
    """Whole cos and sin tables [context, rotary_dim / 2], computed in float64 and checked against the model's own.

    Longrope (Phi-3.5; LongRoPE, arXiv:2402.13753) has a second pair of tables, for every step whose total length is
    past the one that the model was first trained for. Both are then stored as [2, context, rotary_dim / 2] and each
    step gathers one by its total, as eager torch chooses it: keys already in the KV cache keep the rotation that they
    were stored with.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, rotary: Any, context: int) -> None:
        super().__init__()
        self.switch = longrope_switch(rotary.config)
        # Not inv_freq: a step past the switch leaves the long one there.
        frequencies = [getattr(rotary, "original_inv_freq", rotary.inv_freq)]
        if self.switch and context > self.switch:
            frequencies.append(rotary.rope_init_fn(rotary.config, "cpu", seq_len=self.switch + 1)[0])
        factor = float(getattr(rotary, "attention_scaling", 1.0))
        pairs = [_rotation(each, factor, context) for each in frequencies]
        # The model's own module says what it does up to the switch and after it.
        for pair, rows in zip(pairs, (min(context, self.switch or context), context), strict=False):
            if not _rotates(rotary, pair, rows):
                raise ExportError(
                    f"{type(rotary).__name__} does not rotate halves by cos and sin tables; it is not supported."
                )
        whole = [torch.stack(tables) if len(tables) > 1 else tables[0] for tables in zip(*pairs, strict=True)]
        self.register_buffer("cos", whole[0])
        self.register_buffer("sin", whole[1])

    def forward(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.cos.dim() == 2:
            return self.cos, self.sin
        total = Current.step.total
        assert total is not None
        table = (total > self.switch).long()
        return self.cos[table], self.sin[table]


def longrope_switch(config: Any) -> int:
    """Tokens up to which a longrope model rotates by its short table; 0 for a model with one table.

    As transformers' dynamic_rope_update decides it.
    """
    scaling = getattr(config, "rope_scaling", None) or {}
    if scaling.get("rope_type", scaling.get("type")) != "longrope":
        return 0
    return int(getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings)


def _rotation(frequencies: Tensor, factor: float, context: int) -> tuple[Tensor, Tensor]:
    """cos and sin float32 [context, rotary_dim / 2] of inverse frequencies float32 [rotary_dim / 2]."""
    # NumPy, because torch.cos was seen to differ in the last bit between processes.
    angles = (torch.arange(context).float()[:, None] * frequencies.float()[None]).numpy().astype(np.float64)
    cos, sin = ((function(angles) * factor).astype(np.float32) for function in (np.cos, np.sin))
    return torch.from_numpy(cos), torch.from_numpy(sin)


def _rotates(rotary: Any, pair: tuple[Tensor, Tensor], rows: int) -> bool:
    """Whether ``rotary`` gives the first ``rows`` of ``pair``, once for each half, for a step of that length."""
    cos, sin = (table[:rows] for table in pair)
    half = cos.shape[-1]
    own_cos, own_sin = (own[0] for own in rotary(torch.zeros(1, 1, 1), torch.arange(rows)[None]))
    if own_cos.shape[-1] != 2 * half:
        return False
    worst = max(float((own_cos[:, :half] - cos).abs().max()), float((own_sin[:, half:] - sin).abs().max()))
    return worst <= 2e-3
