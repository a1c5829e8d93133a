"""The calibration text, and what the linear layers of a model read while it goes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exporter.errors import ExportError

TEXT = Path(__file__).with_name("calibration.txt")
"""38,900 characters: our own, then W. Morris, News from Nowhere (1890), and H. Krehbiel, How to Listen to Music (1896),
both in the public domain. None of it is in the text that an export is measured on."""

TOKENS = 8192
"""Tokens of a calibration text that are used at most; more takes longer and was not seen to help."""

SHORTEST = 256
"""Tokens that a calibration text has at least; statistics of fewer would be fitted to noise."""


def sequences(ids: Sequence[int], length: int, first: Sequence[int] = ()) -> Tensor:
    """The text as int64 [sequences, length], its remainder left out; one that is too short is repeated to ``length``.

    Each begins with the tokens ``first``, as each is read by itself. Raises ExportError for a text of fewer than
    SHORTEST tokens.
    """
    if len(ids) < SHORTEST:
        raise ExportError(f"The calibration text has {len(ids)} tokens; give one of several thousand.")
    length -= len(first)
    count = max(1, min(TOKENS, len(ids)) // length)
    repeated = list(ids) * -(-length // len(ids))
    rows = torch.tensor(repeated[: count * length]).view(count, length)
    return torch.cat([torch.tensor(first, dtype=torch.int64).expand(count, -1), rows], 1)


@dataclass
class Group:
    """Linear layers that read one tensor, and statistics of it over a text.

    ``linears`` are named from the model on, as is ``norm``, the module that wrote the tensor ("" where that is none).
    ``hessian`` float32 [columns, columns] is the mean of x · xᵀ, ``magnitude`` [columns] that of the absolute values.
    """

    linears: list[str]
    norm: str
    hessian: Tensor
    magnitude: Tensor
    tokens: int = 0

    def add(self, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        self.hessian.addmm_(rows.T, rows)
        self.magnitude += rows.abs().sum(0)
        self.tokens += len(rows)

    def finish(self) -> None:
        self.hessian /= self.tokens
        self.magnitude /= self.tokens


@dataclass
class _Observer:
    """Collects the Groups of one decoder layer. On the first sequence it finds them, by which tensors are the same."""

    names: dict[nn.Module, str]
    groups: dict[nn.Module, Group] = field(default_factory=dict)
    read: list[tuple[Tensor, Group]] = field(default_factory=list)
    normed: list[tuple[Tensor, str]] = field(default_factory=list)
    finding: bool = True

    def on_linear(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        (x,) = arguments
        if not self.finding:
            if module in self.groups:
                self.groups[module].add(x)
            return
        # Both lists keep their tensors, or another could come to lie at the same address.
        group = next((group for other, group in self.read if _same(other, x)), None)
        if group is not None:
            group.linears.append(self.names[module])
            return
        width = x.shape[-1]
        norm = next((name for other, name in self.normed if _same(other, x)), "")
        group = Group([self.names[module]], norm, torch.zeros(width, width), torch.zeros(width))
        group.add(x)
        self.groups[module] = group
        self.read.append((x, group))

    def on_norm(self, module: nn.Module, _: Any, output: Tensor) -> None:
        if self.finding:
            self.normed.append((output, self.names[module]))

    def found(self) -> None:
        """The first sequence is through; from now on each group counts what its first linear layer reads."""
        self.finding = False
        self.read.clear()
        self.normed.clear()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape


@torch.no_grad()
def groups(model: Any, ids: Tensor, report: Callable[[int], None]) -> Iterator[list[Group]]:
    """The Groups of one decoder layer after the other, while ``ids`` int64 [sequences, tokens] go through ``model``.

    What is kept is one layer's statistics and the activations between two layers, 4 · tokens · hidden bytes.
    ``report`` is called with the tokens that have passed a layer.
    """
    layers = list(model.get_decoder().layers)
    names = {module: name for name, module in model.named_modules()}
    states = [_embedded(model, layers[0], row[None]) for row in ids]
    for layer, keywords in zip(layers, _keywords(model, layers, ids[:1]), strict=True):
        with _observed(layer, names) as observer:
            for i, state in enumerate(states):
                result = layer(state, **keywords)
                states[i] = result[0] if isinstance(result, tuple) else result
                observer.found()
                report(ids.shape[1])
        for group in observer.groups.values():
            group.finish()
        yield list(observer.groups.values())


@contextmanager
def _observed(layer: nn.Module, names: dict[nn.Module, str]) -> Iterator[_Observer]:
    observer = _Observer(names)
    hooks = []
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(observer.on_linear))
        elif type(module).__name__.endswith("Norm"):
            hooks.append(module.register_forward_hook(observer.on_norm))
    yield observer
    for hook in hooks:
        hook.remove()


class _ReachedError(Exception):
    """The first decoder layer is about to run; what comes after is not wanted."""


def _embedded(model: Any, first: nn.Module, ids: Tensor) -> Tensor:
    """What reaches the first decoder layer."""
    state: list[Tensor] = []

    def stop(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        state.append(arguments[0] if arguments else keywords["hidden_states"])
        raise _ReachedError

    hook = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model.get_decoder()(ids, use_cache=False)
    except _ReachedError:
        pass
    finally:
        hook.remove()
    return state[0]


def _keywords(model: Any, layers: list[nn.Module], ids: Tensor) -> list[dict[str, Any]]:
    """The keywords (mask, rotary tables) that each layer is called with, the same for every sequence of one length."""
    found: list[dict[str, Any]] = []

    def record(_: nn.Module, __: Any, keywords: dict[str, Any]) -> None:
        found.append({key: value for key, value in keywords.items() if key != "hidden_states"})

    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        model.get_decoder()(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found
