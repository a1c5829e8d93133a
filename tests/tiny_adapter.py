"""LoRA adapters of tiny models as PEFT writes them, and what they compute in eager torch with PEFT's own arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny_checkpoint
from exporter import adapter

RANK = 4
TARGETS = ("q_proj", "v_proj", "down_proj")


def save(
    folder: Path, seed: int = 0, *, model: Any = None, targets: tuple[str, ...] = TARGETS, **settings: Any
) -> Path:
    """A LoRA of RANK for ``targets`` of ``model`` (None: the tiny llama), as PEFT's save_pretrained writes it."""
    generator = torch.Generator().manual_seed(seed)
    model = model or tiny_checkpoint.model("llama")
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith(targets):
            rank = settings.get("rank_pattern", {}).get(name.rpartition(".")[2], RANK)
            key = f"base_model.model.{name}"
            sizes = {"A": (rank, module.in_features), "B": (module.out_features, rank)}
            for side, size in sizes.items():
                noise = torch.randn(*size, generator=generator) * 0.05
                tensors[f"{key}.lora_{side}.weight"] = noise.half().float()  # as trained in half precision
    folder.mkdir()
    save_file(tensors, folder / adapter.TENSORS)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "use_rslora": False, "bias": "none", "use_dora": False}
    (folder / adapter.CONFIG).write_text(json.dumps(config | settings), encoding="utf-8")
    return folder


def beside(folders: list[tuple[Path, float, float]], ids: Tensor, model: Any = None) -> Tensor:
    """Logits, float64, with ``weight · scaling · B(A(x))`` added to what each adapted layer gives.

    ``folders`` are adapters, each with its weight and scaling; ``model`` None is the tiny llama.
    """
    model = (model or tiny_checkpoint.model("llama")).double()
    for folder, weight, scaling in folders:
        tensors = load_file(folder / adapter.TENSORS)
        for name, module in model.named_modules():
            key = f"base_model.model.{name}.lora_"
            if f"{key}A.weight" in tensors:
                a, b = tensors[f"{key}A.weight"].double(), tensors[f"{key}B.weight"].double()
                module.register_forward_hook(
                    lambda _, x, y, a=a, b=b, s=weight * scaling: y + s * torch.nn.functional.linear(x[0] @ a.T, b)
                )
    with torch.no_grad():
        result: Tensor = model(ids).logits
    return result
