"""Activation-aware weight quantization: inputs that are often large get a finer grid, and the norm before pays for it.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv 2306.00978. Input
channel c of a linear layer is multiplied by s[c] in its weights and divided by s[c] in what writes it: the norm before,
or the up projection before a down projection. s = magnitude^alpha, with the alpha of least output error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from exporter.blocks import Blocks
from exporter.calibration import Group, groups
from exporter.grid import min_max, split
from exporter.weights import Weights

STEPS = 20
"""alpha is tried from 0 to 1 in this many steps, as in the paper."""


@dataclass
class Scaled:
    """Weights of a model that computes the same as ``base``, with channels scaled to suit the grid.

    By parameter name: ``columns`` [columns] multiplies the columns of a matrix, ``rows`` [rows] divides the rows of one
    (or a bias), ``norms`` [hidden] divides a norm's weight, which some architectures store less 1.
    """

    base: Weights
    columns: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, tuple[Tensor, float]] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        weights = self.base.read(name, start, stop)
        if name in self.columns:
            weights *= self.columns[name]
        if name in self.rows:
            weights /= self.rows[name][start:stop].view(-1, *[1] * (weights.ndim - 1))
        if name in self.norms:
            scales, offset = self.norms[name]
            weights = (weights + offset) / scales[start:stop] - offset
        return weights

    def blocks(self, name: str) -> Blocks | None:
        touched = name in self.columns or name in self.rows
        return None if touched else self.base.blocks(name)

    def refuse_unused(self, parameters: Collection[str], aliases: Collection[str]) -> None:
        self.base.refuse_unused(parameters, aliases)

    def stamp(self) -> object:
        return self.base.stamp()

    def save(self, path: Path) -> None:
        """Write the scales as safetensors."""
        parts = {
            "columns": self.columns,
            "rows": self.rows,
            "norms": {n: scales for n, (scales, _) in self.norms.items()},
        }
        tensors = {f"{kind}:{name}": part for kind, named in parts.items() for name, part in named.items()}
        offsets = {name: str(offset) for name, (_, offset) in self.norms.items()}
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, offsets)

    @classmethod
    def open(cls, base: Weights, path: Path) -> Scaled:
        """What ``save`` wrote to ``path``, over ``base``."""
        found = cls(base)
        with safe_open(path, "pt") as file:
            offsets = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                kind, _, name = key.partition(":")
                tensor = file.get_tensor(key)
                if kind == "norms":
                    found.norms[name] = tensor, float(offsets[name])
                else:
                    {"columns": found.columns, "rows": found.rows}[kind][name] = tensor
        return found


@torch.no_grad()
def scale(model: Any, weights: Weights, ids: Tensor, report: Callable[[int], None]) -> Scaled:
    """Find the scales on a text, ``ids`` int64 [sequences, tokens]; ``model`` is the whole eager one.

    A group of linear layers whose input comes from anything but a norm or a gated product stays as it is.
    """
    scaled = Scaled(weights)
    for layer in groups(model, ids, report):
        for group in layer:
            source = _source(model, group)
            if source is None:
                continue
            linears: list[Any] = [model.get_submodule(name) for name in group.linears]
            scales = _search(torch.cat([linear.weight for linear in linears]), group)
            if _divide(scaled, model, source, scales):
                scaled.columns.update({f"{name}.weight": scales for name in group.linears})
    return scaled


def _search(weights: Tensor, group: Group) -> Tensor:
    """The scales [columns] of least output error, tr(D · H · Dᵀ) with D the weights' error at 4 bits."""
    best, least = torch.ones(weights.shape[1]), float("inf")
    magnitude = group.magnitude.clamp(min=1e-4 * float(group.magnitude.mean()) + torch.finfo(torch.float32).tiny)
    for step in range(STEPS):
        scales = magnitude.pow(step / STEPS)
        scales /= (scales.max() * scales.min()).sqrt()
        parts = split(weights * scales)
        grid = min_max(parts, 4)
        errors = grid.values(grid.codes(parts)).flatten(1)[:, : weights.shape[1]] / scales - weights
        loss = float(((errors @ group.hessian) * errors).sum())
        if loss < least:
            best, least = scales, loss
    return best


def _source(model: Any, group: Group) -> str | None:
    """The name of the module that writes the group's input channel by channel, or None."""
    if group.norm:
        return group.norm
    (name, *others) = group.linears
    before = f"{name.removesuffix('down_proj')}up_proj"
    if not others and name.endswith(".down_proj") and before in dict(model.named_modules()):
        return before
    return None


def _divide(scaled: Scaled, model: Any, source: str, scales: Tensor) -> bool:
    """Have what ``source`` writes divided by ``scales``; False, and nothing changed, for a norm of another kind."""
    module = model.get_submodule(source)
    weight, bias = f"{source}.weight", f"{source}.bias"
    if isinstance(module, nn.Linear):
        scaled.rows[weight] = scales
    else:
        offset = _offset(module)
        if offset is None:
            return False
        scaled.norms[weight] = scales, offset
    if getattr(module, "bias", None) is not None:
        scaled.rows[bias] = scales
    return True


def _offset(norm: Any) -> float | None:
    """What a norm adds to its stored weight, found by halving what it multiplies by: 0, 1 (Gemma), or None."""
    noise = torch.randn(2, norm.weight.numel(), generator=torch.Generator().manual_seed(0))
    weight, bias = norm.weight.clone(), getattr(norm, "bias", None)
    shift = 0 if bias is None else bias
    whole = norm(noise) - shift
    try:
        for offset in (0.0, 1.0):
            norm.weight.copy_((weight + offset) / 2 - offset)
            if torch.allclose(norm(noise) - shift, whole / 2, rtol=1e-4, atol=1e-5):
                return offset
    finally:
        norm.weight.copy_(weight)
    return None
