"""Eager torch over the quantized weights, with an adapter or without; in float64, where float32 ends and a wrong graph
begins.

The architectures' own code goes through float32 whatever it is given (norms, softmax, rotary), so a model turned to
float64 is none; here every such cast is widened. Only the rotary tables stay what float32 makes of them: they are given
numbers, the same in torch and in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from exporter.adapter import Adapter
from exporter.agreement import Floats
from exporter.progress import stage
from exporter.skeleton import matrices
from exporter.store import Store
from exporter.streamed import Pass, Use
from exporter.weights import Matrix, Weights
from exporter.workers import workers


class Widened(TorchFunctionMode):
    """Within it, what asks for float32 gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        return func(*map(_widened, args), **{name: _widened(value) for name, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@dataclass
class _Adapted(Pass):
    """One stream of Blocks that are all in the store, with what ``adapter`` adds to them."""

    adapter: Adapter | None = None

    def over(self, matrix: Matrix, inputs: Tensor | None, use: Use) -> None:
        pair = self.adapter.pairs.get(matrix.name) if self.adapter else None

        def adapted(rows: slice, weights: Tensor, _: Tensor) -> None:
            if pair is not None:
                weights.addmm_(pair.b[rows].to(self.dtype), pair.a.to(self.dtype), alpha=pair.scale)
            use(rows, weights, weights)

        super().over(matrix, inputs, adapted)


def eager_logits(
    model: Any, weights: Weights, store: Store, ids: Sequence[int], positions: int, adapter: Adapter | None = None
) -> Floats:
    """Logits float32 [positions, vocabulary] of ``model`` (a skeleton, used up) over the Blocks in ``store``, after the
    last so many of ``ids``."""
    return _logits(model, weights, store, ids, positions, adapter, torch.float32)


def exact_logits(
    model: Any, weights: Weights, store: Store, ids: Sequence[int], positions: int, adapter: Adapter | None = None
) -> Floats:
    """The same, computed in float64 and rounded once, to float32: that is 2e-6 at a logit of 32."""
    for parameter in model.parameters():
        if not parameter.is_meta:
            parameter.data = parameter.data.double()
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = _in_float32(module.forward)
    with Widened():
        return _logits(model, weights, store, ids, positions, adapter, torch.float64)


@torch.no_grad()
def _logits(
    model: Any,
    weights: Weights,
    store: Store,
    ids: Sequence[int],
    positions: int,
    adapter: Adapter | None,
    dtype: torch.dtype,
) -> Floats:
    tokens = torch.tensor([list(ids)])
    found = {matrix.name: matrix for matrix in matrices(model, weights)}
    embedding = model.get_input_embeddings()
    names = {module: f"{name}.weight" for name, module in model.named_modules()}
    table = found[names[embedding]]
    linear = [(module, found.get(names[module], table)) for module in model.modules() if isinstance(module, nn.Linear)]
    work = sum(matrix.rows * matrix.columns for matrix in [table, *(matrix for _, matrix in linear)])
    with stage(f"Computing in {str(dtype).removeprefix('torch.')}", work, "weights") as bar, ExitStack() as patches:
        mode = Widened if dtype == torch.float64 else torch.no_grad
        pool = patches.enter_context(workers())
        run = _Adapted(store, _never, set(found), [1], bar.update, pool, dtype, mode, adapter=adapter)
        patches.enter_context(run.embedding(embedding, table, tokens))
        for module, matrix in linear:
            patches.enter_context(run.linear(module, matrix))
        logits = model(tokens, use_cache=False, logits_to_keep=positions).logits[0]
    with torch._C.DisableTorchFunction():
        rounded: Floats = logits.float().numpy()
    return rounded


def _never(*_: Any) -> Any:
    raise AssertionError("every matrix is in the store")


def _in_float32(forward: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
    def tables(x: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, ...]:
        with torch._C.DisableTorchFunction():
            return tuple(table.double() for table in forward(x.float(), *arguments, **keywords))

    return tables
