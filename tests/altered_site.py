"""A copy of an assembled site in which some files are others: devices and servers that a test cannot have otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from links import link
from vendor import sha256_of


def copy(site: Path, home: Path) -> Path:
    """``home``: ``site`` linked file by file, for ``change``."""
    return Path(shutil.copytree(site, home, copy_function=link))


def change(home: Path, name: str, edit: Callable[[str], str]) -> None:
    """Replace the text of ``home``/``name``, which must become another; its compressed copies go."""
    path = home / name
    text = path.read_text(encoding="utf-8")
    edited = edit(text)
    assert edited != text, f"{name} has nothing of what was to be changed"
    for copied in (path, *path.parent.glob(f"{path.name}.*")):
        copied.unlink()
    path.write_text(edited, encoding="utf-8")


def change_json(home: Path, name: str, edit: Callable[[Any], None]) -> None:
    """``change`` for a JSON file, whose content ``edit`` alters in place."""

    def edited(text: str) -> str:
        content = json.loads(text)
        edit(content)
        return json.dumps(content)

    change(home, name, edited)


def list_anew(home: Path) -> None:
    """Have site.json list the files as they are now, as the next assembly would: the service worker keeps no others."""

    def listed(site: Any) -> None:
        for name, entry in site["files"].items():
            entry |= {"bytes": (home / name).stat().st_size, "sha256": sha256_of(home / name)}

    change_json(home, "site.json", listed)


def trust_software(home: Path) -> None:
    """Have the page take SwiftShader for a graphics chip, which it otherwise passes over."""
    change(home, "sessions/facts.js", lambda text: text.replace('? "software" :', '? "hardware" :'))
