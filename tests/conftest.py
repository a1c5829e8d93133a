"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

import tabs

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

    return page_models.site(dist, tmp_path_factory.mktemp("tiny") / "dist", ("tiny", "tiny-base", "tiny-gguf"))
