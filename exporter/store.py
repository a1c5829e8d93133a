"""Blocks on disk between the stages: one safetensors file a matrix, so that no stage holds more than one of them."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from exporter.blocks import Blocks


class Store:
    """A folder of Blocks by parameter name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def write(self, name: str, blocks: Blocks) -> None:
        """Put ``blocks`` under ``name``, whole or not at all."""
        values = {field.name: getattr(blocks, field.name) for field in fields(blocks)}
        tensors = {key: value.contiguous() for key, value in values.items() if isinstance(value, Tensor)}
        described = {key: value for key, value in values.items() if key not in tensors}
        partial = self.folder / "partial"
        save_file(tensors, partial, {"blocks": json.dumps(described)})
        partial.replace(self._path(name))

    def read(self, name: str) -> Blocks:
        """The Blocks of ``name``, their tensors mapped from the file for as long as they live."""
        return self._open(name, data=True)

    def forms(self) -> dict[str, Blocks]:
        """All Blocks on torch's meta device: shapes, methods and errors without the data."""
        names = sorted(path.stem for path in self.folder.glob("*.safetensors"))
        return {name: self._open(name, data=False) for name in names}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _open(self, name: str, data: bool) -> Blocks:
        with safe_open(self._path(name), "pt") as file:
            found: dict[str, Any] = json.loads(file.metadata()["blocks"])
            for key in file.keys():  # noqa: SIM118 (no mapping)
                tensor = file.get_tensor(key)
                found[key] = tensor if data else tensor.to("meta")
        return Blocks(**found)
