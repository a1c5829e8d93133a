"""What a model's export will take, computed from its config alone: nothing is downloaded and no weights are read.

The architecture is built on torch's meta device, with one layer and with two: every layer of one model takes the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.accelerate import init_empty_weights
from transformers.modeling_utils import no_init_weights

from exporter import verify
from exporter.blocks import Blocks, round_symmetric, round_to_nearest, stack
from exporter.branches import Branches, Switched, refuse_misfits
from exporter.context import context_of, head_dim, kv_bytes
from exporter.modules import longrope_switch
from exporter.quantize import SMALL, Choice
from exporter.sensitivity import NARROW, WIDE, left_of
from exporter.substitute import QKV, may_stack_qkv

WASM_MEMORY = 4 << 30
GPU_MEMORY = 4_000_000_000
RUNTIME = 300_000_000
"""Bytes of a tab beside weights and KV cache: Python, the runtime, activations (tests/bench/results/tab.json)."""

TOKENIZER_BYTES = 75
"""Bytes of tokenizer.json for each token of the vocabulary (SmolLM2's: 72)."""

GRAPH_BYTES = 20_000
"""Bytes of graphs and plan for each layer (SmolLM2's: 22,000)."""

EXPORTER = 1_300_000_000
"""Bytes of memory of an export beside weights: torch, transformers and Optimum, and a text's activations."""


Form = Callable[[str], Blocks | None]
"""Name of a matrix → one row of it as it goes in without loss, or None."""


@dataclass(frozen=True)
class Counted:
    """Of some part of a model: its parameters, and what matrices and everything else take in the shards.

    ``blocks`` has the tables in 8 bits, ``narrow`` in those of a large model; ``least`` has all matrices in 4 bits,
    ``most`` in 8.
    """

    parameters: int
    weights: int
    blocks: int
    narrow: int
    least: int
    most: int
    rest: int

    def __add__(self, other: Counted) -> Counted:
        return Counted(*(a + b for a, b in zip(self._values, other._values, strict=True)))

    def times(self, factor: int) -> Counted:
        return Counted(*(value * factor for value in self._values))

    @property
    def _values(self) -> tuple[int, ...]:
        return tuple(vars(self).values())

    def stored(self, choice: Choice) -> float:
        """Bytes of all matrices. Raises ExportError for a budget that is too small."""
        if choice.budget:
            return min(self.most, self.least + left_of(choice.budget, self.weights, self.least))
        return self.blocks if self.parameters <= SMALL else self.narrow


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes, ``context`` and what fits in tokens.

    ``download`` is the checkpoint in 16 bits; ``shards`` the weights as the page gets them, ``page`` all files of the
    model; ``memory`` and ``disk`` what the export needs at its peak.
    """

    parameters: int
    download: int
    shards: int
    page: int
    bits_per_weight: float
    kv_bytes: int
    context: int
    memory: int
    disk: int
    live: int = 0
    """What a page computes with of the largest adapter, in float32."""

    def fits(self, memory: int) -> int:
        """Tokens of context, at most ``context``, that ``memory`` bytes hold beside the weights; 0 if not even 256."""
        tokens = (memory - RUNTIME - self.shards - self.live) // self.kv_bytes
        return min(self.context, tokens) if tokens >= 256 else 0

    def with_adapters(self, sizes: Collection[int]) -> Estimate:
        """The same with adapters beside the weights, whose files have ``sizes`` in float16.

        The page is the same: it fetches an adapter when a visitor first chooses it.
        """
        more = sum(sizes)
        return replace(self, memory=self.memory + 2 * more, disk=self.disk + more, live=2 * max(sizes, default=0))


def config_of(settings: dict[str, Any]) -> PretrainedConfig:
    """The transformers config of a recipe's facts. Longrope's factors, which those leave out, stay out."""
    config = AutoConfig.for_model(**{key: value for key, value in settings.items() if key != "rope_scaling"})
    config.rope_scaling = settings.get("rope_scaling")
    return config


def estimate(
    config: PretrainedConfig,
    wanted: int = 0,
    form: Form | None = None,
    choice: Choice = Choice(),  # noqa: B008 (frozen)
    bits: float = 0.0,
) -> Estimate:
    """Of a model with ``config``, exported for ``wanted`` tokens of context (0: what a page holds).

    Matrices take the bits of ``choice``, but where ``form`` knows what a GGUF has, they are stored like that; ``bits``
    is how many a weight that comes to, where it is known (0: it is not). A choice that rounds everything anew wins.
    Raises ExportError for a context or a budget that cannot be had.
    """
    if choice.anew:
        form, bits = None, 0.0
    context = context_of(config, wanted)
    layers = int(config.num_hidden_layers)
    if form is None:
        one = _count(config, 1, form, choice)
        whole = one + (_count(config, 2, form, choice) + one.times(-1)).times(layers - 1)
    else:
        whole = _count(config, layers, form, choice)
    switch = longrope_switch(config)
    rotated = int(head_dim(config) * (getattr(config, "partial_rotary_factor", None) or 1.0))
    tables = (2 if switch and context > switch else 1) * (2 if hasattr(config, "rope_local_base_freq") else 1)
    blocks = round(whole.weights * bits / 8 if bits else whole.stored(choice))
    looked_at = 4 * whole.parameters if choice.looks_at_all else 0
    shards = blocks + whole.rest + tables * context * rotated * 4
    text = verify.tokens(whole.parameters, config.vocab_size).text
    return Estimate(
        parameters=whole.parameters,
        download=2 * whole.parameters,
        shards=shards,
        page=shards + config.vocab_size * TOKENIZER_BYTES + config.num_hidden_layers * GRAPH_BYTES,
        bits_per_weight=8 * blocks / whole.weights,
        kv_bytes=kv_bytes(config),
        context=context,
        memory=EXPORTER + looked_at + 2 * shards,
        disk=2 * shards + 4 * text * int(config.vocab_size),
    )


def adapter_bytes(config: PretrainedConfig, switched: Sequence[Switched], form: Form | None = None) -> dict[str, int]:
    """Bytes of each adapter's tensors as the page gets them, by title. Raises ExportError for one that does not fit."""
    model = _on_meta(config, int(config.num_hidden_layers))
    refuse_misfits(switched, model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    behind = {name: [f"{name}.weight"] for name in layers}
    for name, module in model.named_modules():
        if may_stack_qkv(module):
            parts = [f"{name}.{part}" for part in QKV]
            rows = [_row(f"{part}.weight", layers[part].in_features, form) for part in parts]
            if stack(rows) is not None:
                behind[parts[0]] = [f"{part}.weight" for part in parts]
                del behind[parts[1]], behind[parts[2]]
    outputs = {f"{name}.weight": layer.out_features for name, layer in layers.items()}
    branches = Branches(behind, outputs, switched)
    return {each.title: branches.bytes(each.adapter) for each in switched}


def _row(name: str, columns: int, form: Form | None) -> Blocks:
    """One row of a layer's matrix as it will be stored."""
    return (form(name) if form else None) or round_to_nearest(torch.zeros(1, columns), 4)


def _on_meta(config: PretrainedConfig, layers: int) -> Any:
    """The model of ``config`` with so many layers, and nothing of it in memory."""
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.rope_scaling = layers, None
    with init_empty_weights(include_buffers=True), no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(small)
    model.tie_weights()
    return model


def _count(config: PretrainedConfig, layers: int, form: Form | None, choice: Choice) -> Counted:
    model = _on_meta(config, layers)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    weights = blocks = narrow = least = most = 0
    bits = choice.bits or NARROW
    for name, module in model.named_modules():
        if module is embedding or (isinstance(module, nn.Linear) and not (tied and module is head)):
            rows, columns = module.weight.shape
            is_table = module is embedding or module is head
            row = torch.zeros(1, columns)
            stored = form(f"{name}.weight") if form else None
            if stored is not None and module is embedding and stored.minima is not None:
                stored = None
            wide = stored or round_to_nearest(row, WIDE if is_table else bits)
            # A model whose tables are narrow is larger than those that GPTQ is the default of.
            symmetric = is_table and bits == NARROW and choice.method in ("", "rtn")
            slim = stored or (round_symmetric(row) if symmetric else round_to_nearest(row, bits))
            weights += rows * columns
            blocks += rows * wide.bytes
            narrow += rows * slim.bytes
            least += rows * round_to_nearest(row, NARROW).bytes
            most += rows * round_to_nearest(row, WIDE).bytes
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Counted(parameters, weights, blocks, narrow, least, most, 4 * (parameters - weights))
