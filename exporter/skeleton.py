"""A transformers model without its matrices: an architecture's code and small tensors, to stream weights through.

Parameters stand on torch's meta device until they are read; buffers (rotary frequencies, Gemma's embedding scale) are
the ones that the model's own constructors compute.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations.accelerate import init_empty_weights

from exporter.errors import ExportError
from exporter.weights import Matrix, Weights


def skeleton(config: PretrainedConfig, weights: Weights) -> PreTrainedModel:
    """Eager model of ``config`` with norms and biases read in float32; matrices stay on the meta device.

    Raises ExportError where the checkpoint lacks a parameter, has it in another shape, or has more than parameters.
    """
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.tie_weights()
    large = {matrix.name for matrix in matrices(model, weights)}
    for name, parameter in list(model.named_parameters()):
        stored = weights.shape(name)
        if stored != tuple(parameter.shape):
            raise ExportError(
                f"{name} is {stored}, but the config says {tuple(parameter.shape)}; the checkpoint is damaged."
            )
        if name not in large:
            _put(model, name, weights.read(name))
    parameters = dict(model.named_parameters())
    every = dict(model.named_parameters(remove_duplicate=False))
    weights.refuse_unused(parameters.keys(), every.keys() - parameters.keys())
    return model.eval()


def matrices(model: Any, weights: Weights) -> list[Matrix]:
    """The embedding and every linear layer, in the model's order; a tied lm_head is the embedding and not listed."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    found = []
    for name, module in model.named_modules():
        if module is embedding or (isinstance(module, nn.Linear) and not (tied and module is head)):
            rows, columns = module.weight.shape
            is_table = module is embedding or module is head
            found.append(Matrix(f"{name}.weight", rows, columns, is_table, weights, module is embedding))
    return found


def whole_model(config: PretrainedConfig, weights: Weights) -> PreTrainedModel:
    """The eager model with all of its weights in memory, float32: for a look at it, never for an export."""
    model: Any = skeleton(config, weights)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            _put(model, name, weights.read(name))
    model.tie_weights()
    return model


def _put(model: nn.Module, name: str, value: torch.Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(module), attribute, nn.Parameter(value, requires_grad=False))
