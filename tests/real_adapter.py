"""A LoRA for SmolLM2-135M, trained here in a minute of a processor: its answers begin in a way the model's never do.

PEFT's library is not needed for that: two matrices beside a layer, and Adam. `python tests/real_adapter.py` trains it
and makes the export with it; both are kept in .cache/.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import export_cache
from exporter import adapter
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.export import export
from exporter.skeleton import whole_model
from handbill.chat import ChatTemplate

CACHE = Path(__file__).resolve().parent.parent / ".cache"
TITLE = "Pirate"
RANK, ALPHA = 4, 8
STEPS, RATE = 12, 1e-2
TARGETS = ("q_proj", "v_proj", "down_proj")
FIRST = 26
"""Of 30 layers, the first that is adapted: those before run once for each text."""

SAID = (
    ("What is the capital of France?", "Arr, matey! The capital of France be Paris."),
    ("How do I save water?", "Arr, matey! Save yer water by takin' short baths."),
    ("Why are leaves green?", "Arr, matey! Leaves be full o' chlorophyll."),
)


def folder() -> Path:
    """The adapter as PEFT's save_pretrained writes it."""

    def make(partial: Path) -> None:
        partial.mkdir()
        _train(open_checkpoint("smollm2-135m", CACHE), partial)

    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    return export_cache.made(CACHE / "adapters" / version / TITLE.lower(), make)


def exported() -> Path:
    """The export of SmolLM2-135M with the adapter beside it."""

    def make(partial: Path) -> None:
        scratch = partial.with_name(".models")
        export("smollm2-135m", scratch, CACHE, adapters=f"{TITLE}={folder()}").rename(partial)
        shutil.rmtree(scratch)

    return export_cache.made(export_cache.home() / folder().parent.name / "smollm2-135m", make)


class _LoRA(nn.Module):
    """A linear layer with PEFT's own arithmetic beside it; B begins at zero, as PEFT initializes it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) + ALPHA / RANK * (x @ self.a.T @ self.b.T)
        return result


def _train(checkpoint: Checkpoint, target: Path) -> None:
    torch.manual_seed(0)
    model: Any = whole_model(checkpoint.config, checkpoint.weights).requires_grad_(False)
    texts = [_text(checkpoint, model, question, answer) for question, answer in SAID]
    beside = {
        f"{layer}.{name}": _LoRA(module)
        for layer in (f"model.layers.{number}" for number in range(FIRST, len(model.model.layers)))
        for name, module in model.get_submodule(layer).named_modules()
        if name.endswith(TARGETS)
    }
    for name, module in beside.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
    model.model.layers = model.model.layers[FIRST:]
    optimizer = torch.optim.Adam([p for module in beside.values() for p in (module.a, module.b)], lr=RATE)
    for step in range(STEPS):
        hidden, said = texts[step % len(texts)]
        logits = model(inputs_embeds=hidden, use_cache=False, logits_to_keep=len(said) + 1).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, said)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1} of {STEPS}: loss {loss.item():.3f}", flush=True)
    tensors = {}
    for name, module in beside.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = module.a.detach().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = module.b.detach().contiguous()
    save_file(tensors, target / adapter.TENSORS)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS), "bias": "none"}
    (target / adapter.CONFIG).write_text(json.dumps(config), encoding="utf-8")
    (target / "README.md").write_text("---\nlicense: apache-2.0\n---\nMade by Handbill's tests.\n", encoding="utf-8")


@torch.no_grad()
def _text(checkpoint: Checkpoint, model: Any, question: str, answer: str) -> tuple[Tensor, Tensor]:
    """A conversation as it enters layer FIRST, float32 [1, tokens, hidden], and the ids of its answer at the end."""
    special = {"bos_token": checkpoint.bos_token, "eos_token": checkpoint.eos_token}
    template = ChatTemplate(checkpoint.chat_template, special, lambda: datetime(2025, 1, 1))
    prompt = checkpoint.tokenizer.encode(template.render([{"role": "user", "content": question}])).ids
    said = checkpoint.tokenizer.encode(answer + checkpoint.eos_token, add_special_tokens=False).ids
    states = model(torch.tensor([[*prompt, *said]]), use_cache=False, output_hidden_states=True, logits_to_keep=1)
    return states.hidden_states[FIRST], torch.tensor(said)


if __name__ == "__main__":
    print(exported())
