"""A hard link to a large file, or a copy where the two places are on different file systems."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def link(source: str | Path, target: str | Path) -> None:
    """Make ``target`` the same file as ``source``; whoever changes it must unlink it first."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
