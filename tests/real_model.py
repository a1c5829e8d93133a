"""The real SmolLM2-135M-Instruct that ``make demo`` exports; for tests with the marker ``model``."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbill.manifest import NAME, Manifest

FOLDER = Path(__file__).parents[1] / "models" / "smollm2-135m"


def manifest() -> Manifest:
    """Its manifest. Skips the test where it has not been exported."""
    if not (FOLDER / NAME).is_file():
        pytest.skip("models/smollm2-135m is not there: python exporter/export.py smollm2-135m")
    return Manifest.from_json((FOLDER / NAME).read_text(encoding="utf-8"))
