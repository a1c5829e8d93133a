"""How much each matrix matters: what rounding it to 4 bits does to the model's predictions, and bits spent by that.

The effect is a Kullback-Leibler divergence to second order, through the Fisher information of the predictions (Dong et
al., HAWQ-V2, arXiv 1911.03852, weigh errors by curvature; Kim et al., SqueezeLLM, arXiv 2306.07629, by the Fisher
diagonal). With targets drawn from the model's own predictions, D the rounding error of a matrix, x its input and g the
gradient of the log-likelihood by its output, it is half the mean of (gᵀ · D · x)² over tokens: no diagonal is assumed,
only that what two tokens do is independent. One backward pass serves all matrices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exporter.blocks import BLOCK_SIZE
from exporter.errors import ExportError
from exporter.grid import min_max, split
from exporter.weights import Matrix

SEQUENCES = 4
NARROW, WIDE = 4, 8


def effects(model: Any, ids: Tensor, report: Callable[[int], None]) -> dict[str, float]:
    """Nats a token that rounding to 4 bits costs, by parameter name, for every linear layer and the embedding.

    ``ids`` int64 [sequences, tokens]; SEQUENCES of them are used, one at a time, and ``report`` is called with the
    tokens done. A tied embedding counts both ways it is used. Takes the memory of one sequence's activations.
    """
    embedding = model.get_input_embeddings()
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if module is embedding or isinstance(module, nn.Linear):
            names[module] = f"{name}.weight"
    if model.get_output_embeddings().weight is embedding.weight:
        names[model.get_output_embeddings()] = names[embedding]
    found = dict.fromkeys(names.values(), 0.0)
    generator = torch.Generator().manual_seed(0)

    def watch(module: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        x = arguments[0].detach()

        def measure(gradient: Tensor) -> None:
            with torch.no_grad():
                parts = split(module.weight)
                grid = min_max(parts, NARROW)
                error = grid.values(grid.codes(parts)).sub_(parts).flatten(1)[:, : module.weight.shape[1]]
                moved = error[x] if module is embedding else x @ error.T
                found[names[module]] += float((moved * gradient).sum(-1).square().sum())

        output.register_hook(measure)  # type: ignore[no-untyped-call]

    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    embedding.weight.requires_grad_(True)  # so that there is a graph at all
    hooks = [module.register_forward_hook(watch) for module in names]
    try:
        with torch.enable_grad():
            for row in ids[:SEQUENCES]:
                logits = model(row[None], use_cache=False).logits[0].log_softmax(-1)
                targets = torch.multinomial(logits.detach().exp(), 1, generator=generator)
                logits.gather(1, targets).sum().backward()
                report(len(row))
    finally:
        for hook in hooks:
            hook.remove()
        embedding.weight.grad = None
        for parameter in frozen:
            parameter.requires_grad_(True)
    tokens = ids[:SEQUENCES].numel()
    return {name: 0.5 * total / tokens for name, total in found.items()}


def spend(matrices: Sequence[Matrix], effect: dict[str, float], budget: float) -> dict[str, int]:
    """Bits of every matrix by parameter name, so that all of them take at most ``budget`` bits a weight.

    What saves most divergence a byte goes first to 8 bits. Raises ExportError for a budget below what 4 bits take.
    """
    narrow = {matrix.name: _bytes(matrix, NARROW) for matrix in matrices}
    extra = {matrix.name: _bytes(matrix, WIDE) - narrow[matrix.name] for matrix in matrices}
    total = sum(matrix.rows * matrix.columns for matrix in matrices)
    left = left_of(budget, total, sum(narrow.values()))
    bits = dict.fromkeys(narrow, NARROW)
    units = [(sum(effect[name] for name in unit), sum(extra[name] for name in unit), unit) for unit in _units(matrices)]
    for _, cost, unit in sorted(units, key=lambda each: -each[0] / each[1]):
        if cost <= left:
            left -= cost
            bits.update(dict.fromkeys(unit, WIDE))
    return bits


def left_of(budget: float, weights: int, least: int) -> float:
    """Bytes that ``budget`` bits a weight leave beside the ``least`` that so many ``weights`` take. Raises ExportError
    where that is less than nothing."""
    left = budget * weights / 8 - least
    if left < 0:
        raise ExportError(
            f"--budget {budget:g} is less than 4-bit weights take with their scales; "
            f"{math.ceil(8000 * least / weights) / 1000} bits a weight is the least for this model."
        )
    return left


def _bytes(matrix: Matrix, bits: int) -> int:
    """What a rounded matrix takes: codes, float16 scales and, for 4 bits, packed zero points."""
    blocks = -(-matrix.columns // BLOCK_SIZE)
    return matrix.rows * (blocks * (BLOCK_SIZE * bits // 8 + 2) + (-(-blocks // 2) if bits == NARROW else 0))


def _units(matrices: Sequence[Matrix]) -> list[list[str]]:
    """Matrices that are decided on together: q, k and v of a layer are one matrix in the graph, if their bits agree."""
    units: dict[str, list[str]] = {}
    for matrix in matrices:
        units.setdefault(re.sub(r"\b[qkv]_proj\b", "qkv", matrix.name), []).append(matrix.name)
    return list(units.values())
