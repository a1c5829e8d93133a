"""A model's golden file: what eager torch answers greedily from the source's own weights. The export must say the same.

`python tests/test_golden.py smollm2-135m` writes the file anew, from torch alone.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import real_model
from exporter.checkpoint import open_checkpoint
from exporter.native import RustTokenizer
from exporter.recipes import RECIPES
from handbill.chat import Prompter
from handbill.manifest import Manifest

GOLDEN = Path(__file__).with_name("golden")
QUESTIONS = ["What is the capital of France?", "Why is the sky blue?", "Write 2 + 3 × 4 = 14 in words. 🙂"]
TOKENS = 32


def prompt_of(manifest: Manifest, question: str) -> str:
    return Prompter(manifest, lambda: datetime(2026, 1, 1), {}).prompt([{"role": "user", "content": question}])


@pytest.mark.model
@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES if recipe.package])
def test_the_export_answers_as_torch_does(name: str, tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    manifest = real_model.manifest(name)
    tokenizer = RustTokenizer.open(real_model.MODELS / name)
    session = real_model.exact_session(tmp_path, 512, name)
    for turn in golden:
        session.rewind(0)
        prompt = tokenizer.encode(prompt_of(manifest, turn["question"]))
        assert prompt == turn["prompt"]
        answer: list[int] = []
        step = prompt
        while len(answer) < TOKENS and (not answer or answer[-1] not in manifest.eos_ids):
            answer.append(asyncio.run(session.step(step))[0].ids[0])
            step = answer[-1:]
        assert answer == turn["answer"], turn["question"]
    session.close()


def write(name: str) -> None:
    """The golden file of ``name``: prompt and greedy answer by eager torch, through its own tokenizer."""
    import torch

    from exporter.skeleton import whole_model

    checkpoint = open_checkpoint(name, Path(".cache"))
    model: Any = whole_model(checkpoint.config, checkpoint.weights)
    manifest = real_model.manifest(name)
    turns = []
    for question in QUESTIONS:
        prompt = checkpoint.tokenizer.encode(prompt_of(manifest, question)).ids
        ids = torch.tensor([prompt])
        with torch.no_grad():
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
                eos_token_id=manifest.eos_ids, pad_token_id=manifest.eos_ids[0],
            )  # fmt: skip
        turns.append({"question": question, "prompt": prompt, "answer": whole[0].tolist()[len(prompt) :]})
    (GOLDEN / f"{name}.json").write_text(json.dumps(turns, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1])
