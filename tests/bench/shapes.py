"""Checkpoints of a real model's shape with random weights: what an export costs does not depend on what weights say.

`python tests/bench/shapes.py gemma-2b` writes one to .cache/bench/shapes/ as the Hub would have it: bfloat16
safetensors, one file a layer, so that no more than a layer is ever in memory.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.accelerate import init_empty_weights

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".cache" / "bench" / "shapes"
DEVIATION = 0.02

# From the config.json of google/gemma-2b and meta-llama/Llama-3.1-8B.
SHAPES: dict[str, dict[str, Any]] = {
    "gemma-2b": {
        "model_type": "gemma",
        "vocab_size": 256_000,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
    },
}


def make(name: str) -> Path:
    """Write the checkpoint, whole or not at all, unless it is there; its folder."""
    folder = HOME / name
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = AutoConfig.for_model(
        **SHAPES[name], bos_token_id=1, eos_token_id=2, pad_token_id=0, torch_dtype="bfloat16"
    )
    config.save_pretrained(partial)
    _write_weights(config, partial)
    _tokenizer(config.vocab_size).save_pretrained(partial)
    partial.rename(folder)
    return folder


def _write_weights(config: Any, folder: Path) -> None:
    with init_empty_weights(include_buffers=True):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    files: dict[str, list[str]] = {}
    for parameter, _ in model.named_parameters():
        layer = parameter.split(".layers.")[1].split(".")[0] if ".layers." in parameter else parameter.split(".")[-2]
        files.setdefault(f"model-{layer}.safetensors", []).append(parameter)
    generator = torch.Generator().manual_seed(0)
    shapes = {parameter: value.shape for parameter, value in model.named_parameters()}
    for file, names in tqdm(files.items(), desc=f"Writing {folder.name.strip('.')}", unit="file"):
        tensors = {
            each: torch.empty(shapes[each], dtype=torch.bfloat16).normal_(0, DEVIATION, generator=generator)
            for each in names
        }
        save_file(tensors, folder / file, {"format": "pt"})
    index = {"weight_map": {each: file for file, names in files.items() for each in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on our held-out text, filled up to ``vocabulary`` with tokens that no text has."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([(ROOT / "exporter" / "text.txt").read_text("utf-8")], trainer)
    state = json.loads(trained.to_str())
    tokens = state["model"]["vocab"]
    tokens.update({f"<unused{i}>": i for i in range(len(tokens), vocabulary)})
    made = Tokenizer.from_str(json.dumps(state))
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


if __name__ == "__main__":
    print(make(sys.argv[1]))
