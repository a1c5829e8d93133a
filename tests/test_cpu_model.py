"""The real SmolLM2 through the CPU session against native ONNX Runtime in float32 on the same graph."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

import cpu_session
from cpu_session import ROOT, Answer
from exporter import graph
from kernel_graph import Array, Shape
from test_plan import native

MODEL = ROOT / "models" / "smollm2-135m"
TOKENS = 256
SHAPE = Shape(layers=30, kv_heads=3, head_dim=64)

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not (MODEL / "manifest.json").is_file(), reason="no export: make demo"),
]


def encode(text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return encode((ROOT / "ARCHITECTURE.md").read_text())[:TOKENS]


@pytest.fixture(scope="module")
def exact(ids: list[int], tmp_path_factory: pytest.TempPathFactory) -> Array:
    folder = tmp_path_factory.mktemp("exact")
    model = graph.load(MODEL / "model.onnx")
    graph.set_accuracy_level(model, 0)
    for shard in MODEL.glob("weights-*.bin"):
        shutil.copyfile(shard, folder / shard.name)
    onnx.save(model, folder / "model.onnx")
    return native(folder / "model.onnx", SHAPE, ids, [TOKENS])


def run(steps: list[dict[str, object]], threads: int = 1) -> list[Answer]:
    manifest = json.loads((MODEL / "manifest.json").read_text())
    _, answers = cpu_session.run(MODEL, steps, threads=threads, **manifest)
    return answers


def cross_entropy(logits: Array, ids: list[int]) -> float:
    """Mean over the positions that have a next token, in nats."""
    logits = logits[:-1].astype(np.float64)
    most = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - most).sum(axis=1)) + most[:, 0]
    return float((total - logits[np.arange(len(logits)), ids[1:]]).mean())


def test_perplexity_and_likeliest_tokens(ids: list[int], exact: Array) -> None:
    steps = [{"ids": ids[i : i + 16], "positions": 16, "logits": True} for i in range(0, TOKENS, 16)]
    logits = np.concatenate([answer.logits for answer in run(steps)])
    assert abs(cross_entropy(logits, ids) - cross_entropy(exact, ids)) < 0.001
    assert (logits.argmax(axis=1) == exact.argmax(axis=1)).mean() >= 0.99


@pytest.mark.parametrize("threads", [1, 2])
def test_it_knows_the_capital_of_france(threads: int) -> None:
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    prompt, answer = encode(system + question), encode("The capital of France is Paris.<|im_end|>")
    steps: list[dict[str, object]] = [{"ids": prompt}, *({"ids": [token]} for token in answer[:-1])]
    assert [int(step.ids[0, 0]) for step in run(steps, threads)] == answer
