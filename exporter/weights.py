"""A checkpoint's tensors, read one at a time: nothing here ever holds the model.

``Weights`` is the seam between what a checkpoint is stored as and the stages; a source of weights (safetensors here,
a GGUF in gguf_file.py) implements it, and so does what changes weights on their way (an adapter merged into them).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from exporter.blocks import Blocks
from exporter.errors import ExportError

PIECE = 1 << 20
"""Weights of a matrix that are worked on at once: 4 MB in float32, which stay in a core's cache from one step to the
next (four times as many take twice as long to round, measured)."""


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

    def stamp(self) -> object:
        """What JSON can hold and changes when the weights do: two runs with one stamp may share their stages."""
        ...


def stamp_of(paths: Iterable[Path]) -> list[list[object]]:
    """Names, sizes and times of files: cheap where a hash would read gigabytes."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


@dataclass(frozen=True)
class Matrix:
    """A linear layer's or embedding's weights [rows, columns], still in the checkpoint.

    ``is_table`` for the embedding and lm_head, which every token reads and which a tied model shares.
    """

    name: str
    rows: int
    columns: int
    is_table: bool
    weights: Weights

    def pieces(self) -> Iterator[slice]:
        """Ranges of rows of about PIECE weights, in order."""
        step = max(1, PIECE // self.columns)
        for start in range(0, self.rows, step):
            yield slice(start, min(start + step, self.rows))

    def read(self, rows: slice) -> Tensor:
        """float32 [stop - start, columns]."""
        return self.weights.read(self.name, rows.start, rows.stop)

    def blocks(self) -> Blocks | None:
        """As stored, where that goes in without loss and an embedding may be read from it (it may not have minima)."""
        stored = self.weights.blocks(self.name)
        return None if stored is not None and self.is_table and stored.minima is not None else stored


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
            names = json.loads(index.read_text("utf-8"))["weight_map"].values()
            return [self.folder / name for name in sorted(set(names))]
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
            return tuple(file.get_slice(stored).get_shape())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        stored = self._stored(name)
        with safe_open(self._files[stored], "pt") as file:
            part: Tensor = file.get_slice(stored)[start:stop]
            # A copy, always: a view of the mapped file would keep its pages in memory.
            return part.to(torch.float32, copy=True)

    def blocks(self, name: str) -> Blocks | None:  # noqa: ARG002
        """None: safetensors hold floats."""
        return None

    def stamp(self) -> object:
        return stamp_of(sorted(set(self._files.values())))
