"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Playwright, sync_playwright

import bare_store
import local_server
import page_models
import serve
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


@pytest.fixture(scope="module")
def gpu(playwright: Playwright) -> Iterator[Browser]:
    """Chromium whose graphics chip is SwiftShader."""
    launched = tabs.launch(playwright, gpu=True)
    yield launched
    launched.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """A browser's storage of its own."""
    context = chromium.new_context()
    yield context
    context.close()


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
def stocked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with a model of random bytes, for the store alone."""
    return bare_store.stock(dist, tmp_path_factory.mktemp("stocked") / "dist")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small site with traps, and a secret beside it."""
    return local_server.traps(tmp_path)


@pytest.fixture
def server(folder: Path) -> Iterator[serve.Server]:
    """serve.py's server of ``folder``."""
    with local_server.running(folder) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The assembled page with tiny random models in the place of its own: one that chats, a base one, a GGUF."""
    return page_models.site(dist, tmp_path_factory.mktemp("tiny") / "dist", ("tiny", "tiny-base", "tiny-gguf"))
