"""PEFT LoRA adapters, merged into a checkpoint's weights on their way to quantization.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685: W + scaling · B · A, with scaling
alpha / r, or alpha / √r where the adapter says use_rslora (Kalajdzievski, arXiv 2312.03732). Read straight from PEFT's
adapter_config.json and adapter_model.safetensors; the library itself would bring accelerate and is not needed for that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from exporter.blocks import Blocks
from exporter.checkpoint import Checkpoint, slug
from exporter.errors import ExportError
from exporter.json_file import read_json
from exporter.weights import Weights, stamp_of

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_UNSUPPORTED = {"use_dora": "DoRA", "use_qalora": "QALoRA", "alora_invocation_tokens": "activated LoRA"}
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(embedding_)?([AB])(\.weight)?")


@dataclass(frozen=True)
class Pair:
    """What one adapter adds to a parameter: ``scale`` · ``b`` · ``a``, b [rows, r], a [r, columns], float32."""

    a: Tensor
    b: Tensor
    scale: float


class Adapter:
    """An opened adapter folder; ``pairs`` by the name of the parameter that each changes.

    Raises ExportError for a folder that is no LoRA adapter, is damaged, or needs more than LoRA.
    """

    def __init__(self, folder: Path, weight: float = 1.0) -> None:
        self.folder, self.weight = folder, weight
        self.pairs: dict[str, Pair] = {}
        config = self._config()
        found: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(folder / TENSORS, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    match = _KEY.fullmatch(key)
                    if match is None:
                        raise ExportError(f"{folder.name} holds {key}, which is not part of a LoRA; it is not merged.")
                    tensor = file.get_tensor(key).float()
                    # An embedding's A is [r, vocabulary] and its B [hidden, r]: the weight they add to is transposed.
                    side = match[3] if not match[2] else {"A": "B", "B": "A"}[match[3]]
                    found.setdefault(match[1], {})[side] = tensor.T if match[2] else tensor
        except (SafetensorError, OSError) as error:
            raise ExportError(f"{folder.name}: {TENSORS} cannot be read ({error}); copy it again.") from error
        for name, sides in found.items():
            if sides.keys() != {"A", "B"}:
                raise ExportError(f"{folder.name} has only one half of the LoRA of {name}; copy it again.")
            rank = _pattern(config["rank_pattern"], name, config["r"])
            alpha = _pattern(config["alpha_pattern"], name, config["lora_alpha"])
            scaling = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
            ranks = {sides["A"].shape[0], sides["B"].shape[1]}
            if ranks != {rank}:
                raise ExportError(f"{folder.name}: {name} has rank {max(ranks)}, but {CONFIG} says {rank}.")
            self.pairs[f"{name}.weight"] = Pair(sides["A"], sides["B"], scaling * weight)
        if not self.pairs:
            raise ExportError(f"{folder.name}: {TENSORS} holds nothing to merge.")

    def _config(self) -> dict[str, Any]:
        config = read_json(self.folder / CONFIG, "give the folder of a PEFT adapter.")
        kind = config.get("peft_type")
        if kind != "LORA":
            raise ExportError(f"{self.folder.name} is an adapter of type {kind}; only LORA is supported.")
        for key, what in _UNSUPPORTED.items():
            if config.get(key):
                raise ExportError(f"{self.folder.name} uses {what}, which is not supported; merge it with PEFT first.")
        if config.get("fan_in_fan_out"):
            raise ExportError(f"{self.folder.name} is for transposed layers (fan_in_fan_out), which is not supported.")
        defaults = {"r": 8, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}  # PEFT's own
        return defaults | {key: value for key, value in config.items() if value is not None}


def _pattern(patterns: dict[str, float], name: str, default: float) -> Any:
    """PEFT's rule: the first pattern that ends the module's name, as a regular expression."""
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name)), default)


def refuse_misfit(adapter: Adapter, shape: Callable[[str], tuple[int, ...]]) -> None:
    """Raise ExportError for an adapter whose pairs have not the ``shape`` of the model's parameters."""
    for name, pair in adapter.pairs.items():
        wanted, own = shape(name), (pair.b.shape[0], pair.a.shape[1])
        if wanted != own:
            raise ExportError(
                f"{adapter.folder.name} is for another model: its {name} is {own}, the checkpoint's {wanted}."
            )


class Adapted:
    """Weights with adapters merged into them. What no adapter touches stays as it is, exact blocks too."""

    def __init__(self, base: Weights, adapters: Sequence[Adapter]) -> None:
        self.base, self.adapters = base, adapters
        for adapter in adapters:
            refuse_misfit(adapter, base.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        weights = self.base.read(name, start, stop)
        for adapter in self.adapters:
            pair = adapter.pairs.get(name)
            if pair is not None:
                weights.addmm_(pair.b[start:stop], pair.a, alpha=pair.scale)
        return weights

    def blocks(self, name: str) -> Blocks | None:
        touched = any(name in adapter.pairs for adapter in self.adapters)
        return None if touched else self.base.blocks(name)

    def refuse_unused(self, parameters: Collection[str], aliases: Collection[str]) -> None:
        self.base.refuse_unused(parameters, aliases)
        for adapter in self.adapters:
            for name in sorted(adapter.pairs.keys() - set(parameters)):
                raise ExportError(
                    f"{adapter.folder.name} changes {name}, which in this model is its embedding too (they are tied): "
                    "merged, it would change both. Train an adapter without it."
                    if name in aliases
                    else f"{adapter.folder.name} is for another model: this one has no {name}."
                )

    def stamp(self) -> object:
        parts = [
            [adapter.weight, stamp_of([adapter.folder / CONFIG, adapter.folder / TENSORS])] for adapter in self.adapters
        ]
        return [self.base.stamp(), parts]


def parse(argument: str) -> Adapter:
    """``PATH`` or ``PATH=WEIGHT`` as the command line has it."""
    path, equals, weight = argument.rpartition("=")
    if not equals or Path(argument).is_dir():
        return Adapter(Path(argument))
    try:
        return Adapter(Path(path), float(weight))
    except ValueError:
        raise ExportError(f"--adapter {argument}: {weight!r} is not a weight; say PATH or PATH=0.5.") from None


def adapt(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """``checkpoint`` with ``adapters`` merged, under a slug of its own, so that the base keeps its folder."""
    if not adapters:
        return checkpoint
    names = [adapter.folder.resolve().name for adapter in adapters]
    added = [name if a.weight == 1 else f"{name} × {a.weight:g}" for name, a in zip(names, adapters, strict=True)]
    return replace(
        checkpoint,
        slug=slug("-".join([checkpoint.slug, *names])),
        title=f"{checkpoint.title} + {', '.join(names)}",
        source=replace(checkpoint.source, name=" + ".join([checkpoint.source.name, *added])),
        weights=Adapted(checkpoint.weights, adapters),
    )
