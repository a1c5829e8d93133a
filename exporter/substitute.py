"""Replace, in a torch model, everything that ONNX Runtime has an operator for, so that Optimum traces the operators.

Nothing here knows an architecture: linear layers, embeddings, RMSNorm, rotary tables and attention are found by what
they are, and a norm's "weight or 1 + weight" is decided by running it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from exporter.attention import ATTENTION, PlainAttention
from exporter.blocks import Blocks, stack
from exporter.errors import ExportError
from exporter.modules import (
    Current,
    Norm,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedTable,
    RotaryTable,
    ScaleBank,
    Stacked,
    StackedView,
    Step,
)

QKV = ("q_proj", "k_proj", "v_proj")


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


def _layer_norm(module: nn.LayerNorm) -> nn.LayerNorm:
    """The plain LayerNorm that ``module``, of a class of its own, is: its weight or 1 + weight found as for _norm."""
    noise = torch.randn(2, *module.normalized_shape, generator=torch.Generator().manual_seed(0))
    plain = nn.LayerNorm(module.normalized_shape, module.eps, bias=module.bias is not None)
    with torch.no_grad():
        measured = module(noise)
        plain.load_state_dict(module.state_dict())
        for _ in range(2):
            if torch.allclose(measured, plain(noise), atol=1e-4, rtol=1e-4):
                return plain
            plain.weight.add_(1)
    raise ExportError(f"{type(module).__name__} is not LayerNorm by its weight or 1 + weight; it is not supported.")


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
    plain = plain_attentions(model)
    for name, module in list(model.named_modules()):
        if hasattr(module, "layer_idx") and hasattr(module, "scaling"):
            rotary_modules.add(type(module).__module__)
        linears += _stack_qkv(module, name, blocks)
        if type(module).__name__.endswith("RMSNorm"):
            _put(model, name, _norm(module))
        elif isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm:
            _put(model, name, _layer_norm(module))
        elif type(module).__name__.endswith("RotaryEmbedding"):
            _put(model, name, RotaryTable(module, context))
        elif type(module).__name__ == "NewGELUActivation":
            _put(model, name, nn.GELU(approximate="tanh"))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            linears.append(QuantizedLinear(blocks.pop(f"{name}.weight"), module.bias))
            _put(model, name, linears[-1])
    if not rotary_modules and not plain:
        raise ExportError(f"{model.config.model_type}: its attention does not go through AttentionInterface.")
    for name, module in plain.items():
        _put(model, name, PlainAttention(module))
    model.config._attn_implementation = ATTENTION
    # As submodules, or tracing takes their results for constants and writes the float32 form into the graph.
    model.scale_banks = nn.ModuleList(_banks(linears))
    return Substituted(model, int(model.config.num_hidden_layers), [*model.scale_banks, table], rotary_modules)


def parameters_behind(model: nn.Module) -> dict[str, list[str]]:
    """The parameters of each linear layer of a substituted ``model``, by what the graph calls its codes without
    ``.codes``: one parameter, or those of the layers stacked in one matrix, from its first row on."""
    stacked = {module.stacked.linear for module in model.modules() if isinstance(module, StackedView)}
    found: dict[str, list[str]] = {}
    first: dict[Stacked, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, StackedView):
            first.setdefault(module.stacked, f"{name}.linear")
            found.setdefault(first[module.stacked], []).append(f"{name}.weight")
        elif isinstance(module, QuantizedLinear) and module not in stacked:
            found[name] = [f"{name}.weight"]
    return found


def uses_attention_interface(model_class: type) -> bool:
    """Whether the architecture calls transformers' AttentionInterface, by which our attention is registered."""
    return bool(getattr(model_class, "_supports_attention_backend", False))


def plain_attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The attentions by name of a model that does not call AttentionInterface, where PlainAttention can be put."""
    if uses_attention_interface(type(model)):
        return {}
    return {name: module for name, module in model.named_modules() if PlainAttention.fits(module)}


def may_stack_qkv(module: nn.Module) -> bool:
    """Whether ``module`` has QKV and no norm sits between them and attention. Their Blocks have to agree as well."""
    normed = hasattr(module, "q_norm") or hasattr(module, "q_layernorm")
    return not normed and all(isinstance(getattr(module, part, None), nn.Linear) for part in QKV)


def _stack_qkv(module: Any, name: str, blocks: dict[str, Blocks]) -> list[QuantizedLinear]:
    """Make q_proj, k_proj and v_proj views of one matrix where they may be."""
    if not may_stack_qkv(module):
        return []
    parts = [module.q_proj, module.k_proj, module.v_proj]
    keys = [f"{name}.{part}.weight" for part in QKV]
    joined = stack([blocks[key] for key in keys])
    if joined is None:
        return []
    for key in keys:
        del blocks[key]
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    stacked = Stacked(QuantizedLinear(joined, bias))
    end = 0
    for child, part in zip(QKV, parts, strict=True):
        start, end = end, end + part.out_features
        setattr(module, child, StackedView(stacked, start, end))
    return [stacked.linear]


def _banks(linears: list[QuantizedLinear]) -> list[ScaleBank]:
    """A bank for every form of scales that there is."""
    groups: dict[Any, list[QuantizedLinear]] = {}
    for layer in linears:
        groups.setdefault(layer.blocks.scales_form, []).append(layer)
    return [ScaleBank(group) for group in groups.values()]
