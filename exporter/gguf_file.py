"""A GGUF file as a checkpoint: its config, its weights as Blocks where a format goes in without loss.

q and k rows of llama-like models are
stored permuted for interleaved rotary; the permutation moves whole rows, so it can be undone on blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from exporter import gguf_blocks
from exporter.blocks import Blocks
from exporter.errors import ExportError
from exporter.weights import stamp_of

_MODEL_TYPES = {"gemma3": "gemma3_text"}
"""model_type where it is not the GGUF architecture's own name."""

_PERMUTED = {"llama", "mistral", "smollm3"}
_NORM_PLUS_ONE = {"gemma", "gemma2", "gemma3_text"}


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: its GGUF type by name and its bytes, uint8 [rows, bytes a row] or float."""

    name: str
    type: str
    data: Any

    def blocks(self, order: Tensor | None) -> Blocks | None:
        """The tensor as Blocks, exactly, or None for a type that has no exact form. ``order`` permutes its rows."""
        made = gguf_blocks.read(self.type, self.data) if self.data.ndim == 2 else None
        return made if made is None or order is None else made.take_rows(order)

    def weights(self) -> Tensor:
        """float32 weights [rows, columns] or [n]."""
        array = gguf.quants.dequantize(self.data, gguf.GGMLQuantizationType[self.type])
        return torch.from_numpy(np.array(array, dtype=np.float32))


class GGUFFile:
    """An opened GGUF. Raises ExportError, in words, for a file that is not a whole GGUF of a version we know."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_header(path)
        try:
            self.reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            raise ExportError(
                f"{path.name} is damaged or was not downloaded whole ({str(error).splitlines()[0]}); download it again."
            ) from error
        size = path.stat().st_size
        for tensor in self.reader.tensors:
            if tensor.data_offset + tensor.n_bytes > size:
                raise ExportError(
                    f"{path.name} ends in the middle of {tensor.name} ({size:,} bytes on disk); download it again."
                )

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value, or ``default``."""
        entry = self.reader.get_field(key)
        return default if entry is None else entry.contents()

    def config(self) -> PretrainedConfig:
        """The transformers config of the architecture the file names.

        By transformers' own table of keys, but not by its load_gguf_checkpoint, which reads the whole file again.
        """
        architecture = self.value("general.architecture")
        if architecture not in GGUF_CONFIG_MAPPING:
            raise ExportError(
                f"{self.path.name} holds the architecture {architecture!r}, which cannot be read from a GGUF; "
                "pass the original checkpoint's folder instead."
            )
        settings = {
            name: self.value(f"{architecture}.{key}")
            for key, name in GGUF_CONFIG_MAPPING[architecture].items()
            if name and self.reader.get_field(f"{architecture}.{key}") is not None
        }
        names = {tensor.name for tensor in self.reader.tensors}
        return AutoConfig.for_model(
            _MODEL_TYPES.get(architecture, architecture),
            **{"vocab_size": len(self.value("tokenizer.ggml.tokens"))} | settings,
            tie_word_embeddings="output.weight" not in names,
        )


class GGUFWeights:
    """The tensors of a GGUF by transformers' parameter names: the ``Weights`` of such a checkpoint."""

    def __init__(self, file: GGUFFile, config: PretrainedConfig) -> None:
        self.file, self.config = file, config
        self._stored = {tensor.name: tensor for tensor in file.reader.tensors}
        self._names = _name_map(file.value("general.architecture"), int(config.num_hidden_layers))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self._find(name).shape))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        found = self._find(name)
        order = _row_order(self.config, name, found.data.shape[0])
        data = found.data[start:stop] if order is None else found.data[order[start:stop].numpy()]
        weights = GGUFTensor(found.name, found.tensor_type.name, data).weights()
        # llama.cpp adds the 1 of Gemma's 1 + weight into the file.
        plus_one = self.config.model_type in _NORM_PLUS_ONE and name.endswith("norm.weight")
        return weights - 1.0 if plus_one else weights

    def blocks(self, name: str) -> Blocks | None:
        found = self._find(name)
        order = _row_order(self.config, name, found.data.shape[0])
        return GGUFTensor(found.name, found.tensor_type.name, found.data).blocks(order)

    def first_row(self, name: str) -> Blocks | None:
        """As ``blocks``, of the first row alone: enough to know how all are stored."""
        found = self._find(name)
        return GGUFTensor(found.name, found.tensor_type.name, found.data[:1]).blocks(None)

    def stamp(self) -> object:
        return stamp_of([self.file.path])

    def _find(self, name: str) -> Any:
        base, _, suffix = name.rpartition(".")
        tensor = self._stored.get(f"{self._names.get_name(base)}.{suffix}")
        if tensor is None:
            raise ExportError(f"{self.file.path.name} has no tensor for {name}; it is not a whole model.")
        return tensor


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] != b"GGUF":
        raise ExportError(f"{path.name} does not begin with GGUF; it is another kind of file or is damaged.")
    version = int.from_bytes(head[4:8], "little") if len(head) == 8 else 0
    if version not in (2, 3):
        raise ExportError(f"{path.name} is of GGUF version {version}; versions 2 and 3 can be read.")


def _name_map(architecture: str, layers: int) -> Any:
    for key, name in gguf.MODEL_ARCH_NAMES.items():
        if name == architecture:
            return gguf.get_tensor_name_map(key, layers)
    raise ExportError(f"The GGUF architecture {architecture!r} is not known to the gguf package.")


def _row_order(config: Any, parameter: str, rows: int) -> Tensor | None:
    """Row numbers that undo llama.cpp's permutation: it stores a head's rows as (pair, half), not (half, pair)."""
    if config.model_type not in _PERMUTED or not parameter.endswith(("q_proj.weight", "k_proj.weight")):
        return None
    heads = config.num_attention_heads if "q_proj" in parameter else config.num_key_value_heads
    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)
