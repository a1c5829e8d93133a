"""Fixtures that several test files share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

import tabs
from handbill.manifest import NAME, Manifest
from links import link
from vendor import sha256_of

# Module scope: while Playwright's sync API is open it owns the thread's event loop, and other files use asyncio.run.


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Playwright itself."""
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """Chromium without WebGPU."""
    launched = tabs.launch(playwright)
    yield launched
    launched.close()


@pytest.fixture(scope="session")
def dist() -> Path:
    """The assembled site."""
    if not (tabs.DIST / "index.html").is_file():
        pytest.skip("dist/ is not there: python build/assemble.py")
    return tabs.DIST


@pytest.fixture(scope="module")
def site(dist: Path) -> Iterator[str]:
    """The address of dist/, served for the length of a file's tests."""
    with tabs.serving(dist) as address:
        yield address


@pytest.fixture(scope="session")
def tiny_site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The assembled page with tiny random models in the place of its own: one that chats, a base one, a GGUF."""
    import page_models  # Not at the top: it brings torch, which most tests do without.

    home = tmp_path_factory.mktemp("tiny") / "dist"
    shutil.copytree(dist, home, copy_function=link, ignore=shutil.ignore_patterns("models"))
    listed = json.loads((dist / "site.json").read_text(encoding="utf-8"))
    files = {name: entry for name, entry in listed["files"].items() if not name.startswith("models/")}
    models = []
    for name in ("tiny", "tiny-base", "tiny-gguf"):
        export = page_models.exported(name)
        shutil.copytree(export, home / "models" / export.name)
        manifest = Manifest.from_json((export / NAME).read_text(encoding="utf-8"))
        size = sum(entry.bytes for entry in manifest.files)
        files[f"models/{export.name}/{NAME}"] = {
            "bytes": (export / NAME).stat().st_size,
            "sha256": sha256_of(export / NAME),
        }
        models.append({"slug": manifest.slug, "title": manifest.title, "bytes": size})
    for path in home.glob("site.json*"):
        path.unlink()
    (home / "site.json").write_text(json.dumps(listed | {"models": models, "files": files}), encoding="utf-8")
    return home
