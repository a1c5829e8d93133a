"""What tests need from npm, installed once beside a package.json of their own."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import pytest


@functools.cache
def install(folder: Path) -> Path:
    """node_modules of ``folder``, by ``npm ci`` if what is there is not what the lock file says.

    Skips the test where there is no npm.
    """
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed; Node.js brings it")
    lock = folder / "package-lock.json"
    installed = folder / "node_modules" / ".handbill-lock.json"
    if not installed.is_file() or installed.read_bytes() != lock.read_bytes():
        subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder, check=True, capture_output=True
        )
        shutil.copyfile(lock, installed)
    return installed.parent
