"""A JSON file that somebody else wrote: the object in it, or a sentence that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter.errors import ExportError


def read_json(path: Path, advice: str = "download it again.") -> dict[str, Any]:
    """The object in ``path``. Raises ExportError; where there is no such file, it ends with ``advice``."""
    if not path.is_file():
        raise ExportError(f"{path.parent} has no {path.name}; {advice}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise ExportError(f"{path.name} in {path.parent.name} is not JSON ({error}); download it again.") from error
    if not isinstance(found, dict):
        raise ExportError(f"{path.name} in {path.parent.name} holds no JSON object; download it again.")
    return found
