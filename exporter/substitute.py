"""Replace, in a torch model, everything that ONNX Runtime has an operator for, so that Optimum traces the operators.

Nothing here knows an architecture: linear layers, embeddings, RMSNorm, rotary tables and attention are found by what
they are, and a norm's "weight or 1 + weight" is decided by running it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from exporter.blocks import Blocks, pack_zeros, stack
from exporter.errors import ExportError
from exporter.operators import GatherBlockQuantized, GroupQueryAttention, MatMulNBits, SimplifiedLayerNormalization

ATTENTION = "handbill_group_query_attention"


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


class ScaleBank(nn.Module):
    """Scales (and minima) of all linear layers of one form, float16, stored as one tensor.

    MatMulNBits wants them in float32: one Cast and one Split serve every layer, and ONNX Runtime folds both when it
    loads the graph. A weight ``scale · code + minimum`` becomes ``scale · (code - zero)`` with the float32 zero point
    ``-minimum / scale``, which is how GGUF's Q4_1 goes in without loss at 5 bits a weight.
    """

    scales: Tensor
    negative_minima: Tensor | None

    def __init__(self, layers: list[QuantizedLinear]) -> None:
        super().__init__()
        self.keys = [id(layer) for layer in layers]
        self.sizes = [layer.blocks.scales.numel() for layer in layers]
        self.register_buffer("scales", torch.cat([layer.blocks.scales.flatten() for layer in layers]))
        minima = [layer.blocks.minima.flatten() for layer in layers if layer.blocks.minima is not None]
        self.register_buffer("negative_minima", -torch.cat(minima) if minima else None)

    def fill(self, step: Step) -> None:
        scales = self.scales.float()
        step.scales.update(zip(self.keys, self._pieces(scales), strict=True))
        if self.negative_minima is not None:
            step.zeros.update(zip(self.keys, self._pieces(self.negative_minima.float() / scales), strict=True))

    def _pieces(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor,) if len(self.sizes) == 1 else torch.split(tensor, self.sizes)


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
        )
        return result


class QuantizedTable(QuantizedLinear):
    """A QuantizedLinear that an embedding reads too, so it holds its scales itself, as [rows, blocks]."""

    scales: Tensor

    def __init__(self, blocks: Blocks, bias: Tensor | None) -> None:
        if blocks.minima is not None:
            raise ExportError("An embedding with minima (Q4_1) has no operator to read it; requantize it first.")
        super().__init__(blocks, bias)
        self.register_buffer("scales", blocks.scales)

    def fill(self, step: Step) -> None:
        step.scales[id(self)] = self.scales.float()


class QuantizedEmbedding(nn.Module):
    """nn.Embedding over a QuantizedTable; ``scale`` is Gemma's factor on embeddings, or None."""

    def __init__(self, table: QuantizedTable, scale: float | None) -> None:
        super().__init__()
        self.table, self.scale = table, scale

    def forward(self, ids: Tensor) -> Tensor:
        table = self.table
        scales = Current.step.scales[id(table)]
        rows: Tensor = GatherBlockQuantized.apply(  # type: ignore[no-untyped-call]
            ids, table.codes, scales, table.zeros, table.in_features, table.blocks.bits
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
    """Whole cos and sin tables [context, rotary_dim / 2], computed in float64 and checked against the model's own."""

    cos: Tensor
    sin: Tensor

    def __init__(self, rotary: Any, context: int) -> None:
        super().__init__()
        # NumPy, because torch.cos was seen to differ in the last bit between processes.
        angles = (torch.arange(context).float()[:, None] * rotary.inv_freq.float()[None]).numpy().astype(np.float64)
        factor = float(getattr(rotary, "attention_scaling", 1.0))
        cos = torch.from_numpy((np.cos(angles) * factor).astype(np.float32))
        sin = torch.from_numpy((np.sin(angles) * factor).astype(np.float32))
        own_cos, own_sin = rotary(torch.zeros(1, 1, 1), torch.arange(context)[None])
        half = cos.shape[-1]
        if (
            own_cos.shape[-1] != 2 * half
            or max(float((own_cos[0, :, :half] - cos).abs().max()), float((own_sin[0, :, half:] - sin).abs().max()))
            > 2e-3
        ):
            raise ExportError(
                f"{type(rotary).__name__} does not rotate halves by cos and sin tables; it is not supported."
            )
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


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


@dataclass
class Substituted:
    """A model ready to be traced, with what must be filled at the start of each step."""

    model: PreTrainedModel
    layers: int
    fillers: list[ScaleBank | QuantizedTable]
    rotary_modules: set[str]

    def begin(self, step: Step) -> None:
        Current.step = step
        for filler in self.fillers:
            filler.fill(step)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _norm(module: Any) -> Norm:
    """The Norm that does what ``module`` does, its weight or 1 + weight found by running it on noise."""
    weight = module.weight.detach().float()
    epsilon = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))
    noise = torch.randn(2, weight.numel(), generator=torch.Generator().manual_seed(0))
    unit = noise * torch.rsqrt(noise.pow(2).mean(-1, keepdim=True) + epsilon)
    with torch.no_grad():
        measured = module(noise)
    for candidate in (weight, weight + 1):
        if torch.allclose(measured, unit * candidate, atol=1e-4, rtol=1e-4):
            return Norm(candidate, epsilon)
    raise ExportError(f"{type(module).__name__} is not x · weight / rms(x); it is not supported.")


def substitute(model: PreTrainedModel, blocks: dict[str, Blocks], context: int) -> Substituted:
    """Rewrite ``model`` in place. ``blocks`` holds the quantized weights by parameter name; each is taken out as used.

    Raises ExportError for a norm, rotary embedding or attention that the operators cannot express.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    embedding_blocks = blocks.pop(f"{names[embedding]}.weight")
    head_blocks = blocks.pop(f"{names[head]}.weight", None)
    table = QuantizedTable(embedding_blocks, head.bias if head_blocks is None else None)
    scale = getattr(embedding, "embed_scale", None)
    _put(model, names[embedding], QuantizedEmbedding(table, None if scale is None else float(scale)))
    linears: list[QuantizedLinear] = []
    if head_blocks is None:
        _put(model, names[head], table)
    else:
        linears.append(QuantizedLinear(head_blocks, head.bias))
        _put(model, names[head], linears[-1])

    rotary_modules = set()
    for name, module in list(model.named_modules()):
        if hasattr(module, "layer_idx") and hasattr(module, "scaling"):
            rotary_modules.add(type(module).__module__)
        linears += _stack_qkv(module, name, blocks)
        if type(module).__name__.endswith("RMSNorm"):
            _put(model, name, _norm(module))
        elif type(module).__name__.endswith("RotaryEmbedding"):
            _put(model, name, RotaryTable(module, context))
        elif type(module).__name__ == "NewGELUActivation":
            _put(model, name, nn.GELU(approximate="tanh"))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            linears.append(QuantizedLinear(blocks.pop(f"{name}.weight"), module.bias))
            _put(model, name, linears[-1])
    if not rotary_modules:
        raise ExportError(f"{model.config.model_type}: its attention does not go through AttentionInterface.")
    model.config._attn_implementation = ATTENTION
    # As submodules, or tracing takes their results for constants and writes the float32 form into the graph.
    model.scale_banks = nn.ModuleList(_banks(linears))
    return Substituted(model, int(model.config.num_hidden_layers), [*model.scale_banks, table], rotary_modules)


def _stack_qkv(module: Any, name: str, blocks: dict[str, Blocks]) -> list[QuantizedLinear]:
    """Make q_proj, k_proj and v_proj views of one matrix, unless a norm sits between them and attention."""
    if not all(isinstance(getattr(module, part, None), nn.Linear) for part in ("q_proj", "k_proj", "v_proj")):
        return []
    if hasattr(module, "q_norm") or hasattr(module, "q_layernorm"):
        return []
    parts = [module.q_proj, module.k_proj, module.v_proj]
    keys = [f"{name}.{part}.weight" for part in ("q_proj", "k_proj", "v_proj")]
    joined = stack([blocks[key] for key in keys])
    if joined is None:
        return []
    for key in keys:
        del blocks[key]
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    stacked = Stacked(QuantizedLinear(joined, bias))
    end = 0
    for child, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
        start, end = end, end + part.out_features
        setattr(module, child, StackedView(stacked, start, end))
    return [stacked.linear]


def _banks(linears: list[QuantizedLinear]) -> list[ScaleBank]:
    with_minima = [layer for layer in linears if layer.blocks.minima is not None]
    without = [layer for layer in linears if layer.blocks.minima is None]
    return [ScaleBank(group) for group in (with_minima, without) if group]
