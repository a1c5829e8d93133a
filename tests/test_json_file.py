"""JSON that others wrote, when it is damaged: a sentence wherever the exporter reads some."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.adapter import Adapter
from exporter.errors import ExportError
from exporter.json_file import read_json
from exporter.support import read_config
from exporter.weights import Safetensors

READERS = [
    (read_config, "config.json"),
    (Adapter, "adapter_config.json"),
    (Safetensors, "model.safetensors.index.json"),
]


@pytest.mark.parametrize(("reader", "name"), READERS, ids=[name for _, name in READERS])
@pytest.mark.parametrize("damaged", [b'{"a": ', b"[1, 2]", b"\xff{}", b""], ids=["cut", "array", "no UTF-8", "empty"])
def test_damaged_json_is_one_sentence(reader: object, name: str, damaged: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(ExportError, match=r"JSON.*download it again\.$") as raised:
        reader(tmp_path)  # type: ignore[operator]
    assert str(raised.value).startswith(f"{name} in {tmp_path.name} ")


def test_an_index_without_files_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {}}', "utf-8")
    with pytest.raises(ExportError, match="names no files; download it again"):
        Safetensors(tmp_path)


def test_what_is_not_there_ends_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no tree\.json; look under the sofa\.$"):
        read_json(tmp_path / "tree.json", "look under the sofa.")
