"""The stage that turns a model's weights into Blocks, and the model into what the blocks stand for."""

from __future__ import annotations

from typing import Any

import torch

from exporter.blocks import Blocks, round_to_nearest
from exporter.progress import stage


@torch.no_grad()
def quantize(model: Any, exact: dict[str, Blocks]) -> dict[str, Blocks]:
    """Blocks of every linear layer and embedding by parameter name; the model's weights become what they stand for.

    Taken from ``exact`` where a GGUF's blocks go in without loss, else rounded: 4 bits, 8 for embeddings and lm_head.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    modules = [
        (f"{name}.weight", module)
        for name, module in model.named_modules()
        if module is embedding or (isinstance(module, torch.nn.Linear) and not (tied and module is head))
    ]
    blocks: dict[str, Blocks] = {}
    weights = sum(module.weight.numel() for _, module in modules)
    with stage("Quantizing", weights, "weights") as bar:
        for name, module in modules:
            found = exact.pop(name, None)
            wide = module is embedding or module is head
            if found is None or (module is embedding and found.minima is not None):
                found = round_to_nearest(module.weight, 8 if wide else 4)
                module.weight.copy_(found.dequantize())
            blocks[name] = found
            bar.update(module.weight.numel())
    return blocks
