"""What a model's export will take, computed from its config alone: nothing is downloaded and no weights are read.

The architecture is built on torch's meta device, with one layer and with two: every layer of one model takes the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.accelerate import init_empty_weights
from transformers.modeling_utils import no_init_weights

from exporter import verify
from exporter.blocks import Blocks, round_to_nearest
from exporter.context import context_of, head_dim, kv_bytes
from exporter.modules import longrope_switch

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
    """Of some part of a model: its parameters, and what matrices and everything else take in the shards."""

    parameters: int
    weights: int
    blocks: int
    rest: int

    def __add__(self, other: Counted) -> Counted:
        return Counted(*(a + b for a, b in zip(self._values, other._values, strict=True)))

    def times(self, factor: int) -> Counted:
        return Counted(*(value * factor for value in self._values))

    @property
    def _values(self) -> tuple[int, int, int, int]:
        return self.parameters, self.weights, self.blocks, self.rest


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

    def fits(self, memory: int) -> int:
        """Tokens of context, at most ``context``, that ``memory`` bytes hold beside the weights; 0 if not even 256."""
        tokens = (memory - RUNTIME - self.shards) // self.kv_bytes
        return min(self.context, tokens) if tokens >= 256 else 0


def config_of(settings: dict[str, Any]) -> PretrainedConfig:
    """The transformers config of a recipe's facts. Longrope's factors, which those leave out, stay out."""
    config = AutoConfig.for_model(**{key: value for key, value in settings.items() if key != "rope_scaling"})
    config.rope_scaling = settings.get("rope_scaling")
    return config


def estimate(config: PretrainedConfig, wanted: int = 0, form: Form | None = None) -> Estimate:
    """Of a model with ``config``, exported for ``wanted`` tokens of context (0: what a page holds).

    Matrices take our own 4 bits, tables 8, but where ``form`` knows what a GGUF has, they are stored like that.
    """
    context = context_of(config, wanted)
    layers = int(config.num_hidden_layers)
    if form is None:
        one = _count(config, 1, form)
        whole = one + (_count(config, 2, form) + one.times(-1)).times(layers - 1)
    else:
        whole = _count(config, layers, form)
    switch = longrope_switch(config)
    rotated = int(head_dim(config) * (getattr(config, "partial_rotary_factor", None) or 1.0))
    tables = (2 if switch and context > switch else 1) * (2 if hasattr(config, "rope_local_base_freq") else 1)
    shards = whole.blocks + whole.rest + tables * context * rotated * 4
    text = verify.tokens(whole.parameters).text
    return Estimate(
        parameters=whole.parameters,
        download=2 * whole.parameters,
        shards=shards,
        page=shards + config.vocab_size * TOKENIZER_BYTES + config.num_hidden_layers * GRAPH_BYTES,
        bits_per_weight=8 * whole.blocks / whole.weights,
        kv_bytes=kv_bytes(config),
        context=context,
        memory=EXPORTER + 2 * shards,
        disk=2 * shards + 4 * text * int(config.vocab_size),
    )


def _count(config: PretrainedConfig, layers: int, form: Form | None) -> Counted:
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.rope_scaling = layers, None
    with init_empty_weights(include_buffers=True), no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(small)
    model.tie_weights()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    weights = blocks = 0
    for name, module in model.named_modules():
        if module is embedding or (isinstance(module, nn.Linear) and not (tied and module is head)):
            rows, columns = module.weight.shape
            is_table = module is embedding or module is head
            stored = form(f"{name}.weight") if form else None
            if stored is None or (is_table and stored.minima is not None):
                stored = round_to_nearest(torch.zeros(1, columns), 8 if is_table else 4)
            weights += rows * columns
            blocks += rows * stored.bytes
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Counted(parameters, weights, blocks, 4 * (parameters - weights))
