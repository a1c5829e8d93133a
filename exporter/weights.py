"""A checkpoint's tensors, read one at a time: nothing here ever holds the model.

``Weights`` is the seam between what a checkpoint is stored as and the stages; a source of weights (safetensors here,
a GGUF in gguf_file.py) implements it, and so does what changes weights on their way (an adapter merged into them).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from exporter.blocks import Blocks
from exporter.errors import ExportError
from exporter.json_file import read_json

PIECE = 1 << 20
"""Weights of a matrix that are worked on at once: 4 MB in float32, which stay in a core's cache from one step to the
next (four times as many take twice as long to round, measured)."""

_FLOATS = ("F64", "F32", "F16", "BF16")
"""How safetensors call the types that weights can have; codes of another need scales."""

_BUFFERS = re.compile(r"(^|\.)rotary_emb\.(inv_freq|(cos|sin)_cached)$|\.(attention|attn)\.(masked_)?bias$")
"""What older versions of transformers saved beside parameters, and models compute themselves: rotary frequencies and
tables, causal masks."""

LEAST_PIECES = 4
"""Of a matrix, that small ones keep more than one core busy as well. The number of cores does not count: what is
computed would depend on it."""


class Weights(Protocol):
    """Tensors by the name that the parameter has in the transformers model."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter. Raises ExportError where the checkpoint has none of that name."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a parameter in float32; all of them by default."""
        ...

    def blocks(self, name: str) -> Blocks | None:
        """The parameter as Blocks where the stored format goes into them without loss, else None."""
        ...

    def refuse_unused(self, parameters: Collection[str], aliases: Collection[str]) -> None:
        """Raise ExportError where there is more than a model's ``parameters`` are read from: it would be left out.

        ``aliases`` are further names of parameters, such as that of a tied lm_head.
        """
        ...

    def stamp(self) -> object:
        """What JSON can hold and changes when the weights do: two runs with one stamp may share their stages."""
        ...


def unused(holder: str, names: Sequence[str]) -> ExportError:
    """What to say of tensors ``names`` in ``holder`` that no parameter is read from."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return ExportError(
        f"{holder} holds {names[0]}{more}, which a model of its config does not use: without that it would be another "
        "model, so it is not supported. Take the checkpoint that it was made from."
    )


def stamp_of(paths: Iterable[Path]) -> list[list[object]]:
    """Names, sizes and times of files: cheap where a hash would read gigabytes."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


@dataclass(frozen=True)
class Matrix:
    """A linear layer's or embedding's weights [rows, columns], still in the checkpoint.

    ``is_table`` for the embedding and lm_head, which every token reads and which a tied model shares; ``is_embedding``
    for the one whose rows are looked up.
    """

    name: str
    rows: int
    columns: int
    is_table: bool
    weights: Weights
    is_embedding: bool = False

    def pieces(self) -> Iterator[slice]:
        """Ranges of rows, in order, each of at most PIECE weights; LEAST_PIECES or more, where there are the rows."""
        step = max(1, min(PIECE // self.columns, -(-self.rows // LEAST_PIECES)))
        for start in range(0, self.rows, step):
            yield slice(start, min(start + step, self.rows))

    def read(self, rows: slice) -> Tensor:
        """float32 [stop - start, columns]."""
        return self.weights.read(self.name, rows.start, rows.stop)

    def blocks(self) -> Blocks | None:
        """As stored, where that goes in without loss and an embedding may be read from it (it may not have minima)."""
        stored = self.weights.blocks(self.name)
        return None if stored is not None and self.is_embedding and stored.minima is not None else stored


class Safetensors:
    """The safetensors files of a checkpoint folder. A file is mapped only while a tensor of it is read.

    Raises ExportError for a folder without them, or with one that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        for path in self._paths():
            try:
                with safe_open(path, "pt") as file:
                    self._files |= dict.fromkeys(file.keys(), path)
            except (SafetensorError, OSError) as error:
                raise ExportError(
                    f"{path.name} is damaged or was not downloaded whole ({error}); download it again."
                ) from error

    def _paths(self) -> list[Path]:
        """The files that the index names; without one, model.safetensors, or whatever is there."""
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            named = read_json(index).get("weight_map")
            if not isinstance(named, dict):
                raise ExportError(f"{index.name} in {self.folder.name} names no files; download it again.")
            return [self.folder / name for name in sorted(set(named.values()))]
        whole = self.folder / "model.safetensors"
        return [whole] if whole.is_file() else sorted(self.folder.glob("*.safetensors"))

    def _stored(self, name: str) -> str:
        """The tensor's name in the files: a base model saved alone lacks the first part ("model.")."""
        for candidate in (name, name.partition(".")[2]):
            if candidate in self._files:
                return candidate
        raise ExportError(f"{self.folder.name} has no tensor for {name}; it is not a whole checkpoint.")

    def shape(self, name: str) -> tuple[int, ...]:
        stored = self._stored(name)
        with safe_open(self._files[stored], "pt") as file:
            part = file.get_slice(stored)
            if part.get_dtype() not in _FLOATS:
                raise ExportError(
                    f"{self.folder.name} stores {stored} as {part.get_dtype()}: weights that are already quantized are "
                    "not supported. Take the checkpoint that it was made from."
                )
            return tuple(part.get_shape())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        stored = self._stored(name)
        with safe_open(self._files[stored], "pt") as file:
            part: Tensor = file.get_slice(stored)[start:stop]
            # A copy, always: a view of the mapped file would keep its pages in memory.
            return part.to(torch.float32, copy=True)

    def blocks(self, name: str) -> Blocks | None:  # noqa: ARG002
        """None: safetensors hold floats."""
        return None

    def refuse_unused(self, parameters: Collection[str], aliases: Collection[str]) -> None:
        known = {*parameters, *aliases}
        known |= {name.partition(".")[2] for name in known}
        left = sorted(name for name in self._files if name not in known and not _BUFFERS.search(name))
        if left:
            raise unused(self.folder.name, left)

    def stamp(self) -> object:
        return stamp_of(sorted(set(self._files.values())))
