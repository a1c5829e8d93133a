"""A GGUF file as a source of weights: float32, and Blocks where a format goes in without loss.

What llama.cpp's converter changed is undone: the order of q and k rows (whole rows, so on blocks as well) and the 1
that it adds to Gemma's norms. gguf_config.py says where.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from exporter import gguf_blocks
from exporter.blocks import Blocks
from exporter.errors import ExportError
from exporter.gguf_config import architecture_of
from exporter.weights import stamp_of, unused

READABLE = (*gguf_blocks.EXACT, "Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "F16", "BF16", "F32")
"""ggml's types that can be read: the exact ones, and those whose weights are rounded anew."""

_CONFIGURED = re.compile(r"^rope_(freqs|factors_long|factors_short)\.weight$|attn_rot_embd\.")
"""Tensors that are no parameters: what gguf_config.py reads, and rotary frequencies of old converters."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""How llama.cpp names the files of a model that it split."""


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
    """An opened GGUF, or all the files of a split one; ``tensors`` by name, mapped and not yet read.

    Raises ExportError, in words, for a file that is not a whole GGUF of a version we know.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.paths = path, [path]
        self.reader = _open(path)
        readers = [self.reader]
        if (count := self.value("split.count", 1)) > 1:
            self.paths = _parts(path, count)
            readers = [_open(part) for part in self.paths]
            self.reader = readers[0]  # it alone has the metadata
        self.tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        whole = self.value("split.tensors.count", len(self.tensors))
        if len(self.tensors) != whole:
            raise ExportError(
                f"{path.name} and its parts have {len(self.tensors)} of {whole} tensors; download it again."
            )
        for tensor in self.tensors.values():
            if tensor.tensor_type.name not in READABLE:
                raise ExportError(
                    f"{path.name} stores {tensor.name} as {tensor.tensor_type.name}, which cannot be read "
                    f"({', '.join(READABLE)} can); take another quantization of the model."
                )

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value, or ``default``."""
        entry = self.reader.get_field(key)
        return default if entry is None else entry.contents()


class GGUFWeights:
    """The tensors of a GGUF by transformers' parameter names: the ``Weights`` of such a checkpoint."""

    def __init__(self, file: GGUFFile, config: PretrainedConfig) -> None:
        self.file, self.config = file, config
        self._architecture = architecture_of(file)
        self._names = _name_map(file.value("general.architecture"), int(config.num_hidden_layers))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self._find(name).shape))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        found = self._find(name)
        order = self._row_order(name, found.data.shape[0])
        data = found.data[start:stop] if order is None else found.data[order[start:stop].numpy()]
        weights = GGUFTensor(found.name, found.tensor_type.name, data).weights()
        plus_one = self._architecture.norm_plus_one and name.endswith("norm.weight")
        return weights - 1.0 if plus_one else weights

    def blocks(self, name: str) -> Blocks | None:
        found = self._find(name)
        order = self._row_order(name, found.data.shape[0])
        return GGUFTensor(found.name, found.tensor_type.name, found.data).blocks(order)

    def first_row(self, name: str) -> Blocks | None:
        """As ``blocks``, of the first row alone: enough to know how all are stored."""
        found = self._find(name)
        return GGUFTensor(found.name, found.tensor_type.name, found.data[:1]).blocks(None)

    def refuse_unused(self, parameters: Collection[str], aliases: Collection[str]) -> None:  # noqa: ARG002
        known = {self._stored(name) for name in parameters}
        left = sorted(name for name in self.file.tensors if name not in known and not _CONFIGURED.search(name))
        if left:
            raise unused(self.file.path.name, left)

    def stamp(self) -> object:
        return stamp_of(self.file.paths)

    def _stored(self, name: str) -> str:
        """The tensor's name in the file."""
        base, _, suffix = name.rpartition(".")
        return f"{self._names.get_name(base)}.{suffix}"

    def _find(self, name: str) -> Any:
        tensor = self.file.tensors.get(self._stored(name))
        if tensor is None:
            raise ExportError(f"{self.file.path.name} has no tensor for {name}; it is not a whole model.")
        return tensor

    def _row_order(self, name: str, rows: int) -> Tensor | None:
        """Row numbers that undo llama.cpp's permutation: it stores a head's rows as (pair, half), not (half, pair)."""
        part = name.split(".")[-2]
        if not self._architecture.permuted or part not in ("q_proj", "k_proj"):
            return None
        heads = self.config.num_attention_heads if part == "q_proj" else self.config.num_key_value_heads
        return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """gguf's own, over a plain array: it looks at every string of a tokenizer through several memmaps of its own, whose
    making took a sixth of an export of SmolLM2."""

    def _get(self, *arguments: Any, **keywords: Any) -> Any:
        data: Any = self.data  # type: ignore[has-type]
        if isinstance(data, np.memmap):
            self.data = np.asarray(data)
        return super()._get(*arguments, **keywords)


def _parts(path: Path, count: int) -> list[Path]:
    """The files of a split GGUF in order, of which ``path`` is one."""
    name = _PART.sub("", path.name)
    parts = [path.with_name(f"{name}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ExportError(f"{path.name} is one of {count} files, and {missing[0]} is not beside it; download it too.")
    return parts


def _open(path: Path) -> Any:
    _check_header(path)
    try:
        reader: Any = _Reader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ExportError(
            f"{path.name} is damaged or was not downloaded whole ({str(error).splitlines()[0]}); download it again."
        ) from error
    size = path.stat().st_size
    for tensor in reader.tensors:
        if tensor.data_offset + tensor.n_bytes > size:
            raise ExportError(
                f"{path.name} ends in the middle of {tensor.name} ({size:,} bytes on disk); download it again."
            )
    return reader


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
