"""A bare page in Chromium with WebGPU (SwiftShader) that runs web/sessions on exported models, without Python in it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

import tabs
from links import link

WEB = tabs.ROOT / "web"
SHORT_CHUNK = 24
"""That of sessions/webgpu.js."""

PROMPT = [(i * 37 + 11) % 97 + 3 for i in range(20)]
"""Twenty tokens that every tiny model's vocabulary has; past the first three, which are special."""


def site(home: Path, dist: Path, exports: dict[str, Path]) -> Path:
    """A folder to serve: web/ as it is now, ORT Web and kernels of ``dist``, and ``exports`` as models/NAME."""
    shutil.copytree(WEB, home, ignore=shutil.ignore_patterns("node_modules", "kernels", "*.py", "index.html"))
    for name in ("ort", "kernels"):
        shutil.copytree(dist / name, home / name, copy_function=link)
    shutil.copy2(tabs.ROOT / "tests" / "webgpu" / "session.js", home / "session.js")
    for name, export in exports.items():
        shutil.copytree(export, home / "models" / name)
    (home / "index.html").write_text("<!doctype html><link rel=icon href=data:,><title>bare</title>", encoding="utf-8")
    return home


@contextlib.contextmanager
def opened(browser: Browser, home: Path) -> Iterator[GpuPage]:
    """The bare page of ``home`` for the length of a ``with`` block."""
    with tabs.serving(home) as address:
        page = browser.new_page()
        page.set_default_timeout(tabs.LOADED_MS)
        page.goto(address)
        yield GpuPage(page, home)
        page.close()


class GpuPage:
    """Runs JavaScript against tests/webgpu/session.js, on what is served from ``home``."""

    def __init__(self, page: Page, home: Path) -> None:
        self.page = page
        self.home = home

    def js(self, body: str, **values: Any) -> Any:
        """What ``body`` returns, an async function's body with session.js' exports and ``values``."""
        names = ", ".join(values)
        return self.page.evaluate(
            f"""async ({{{names}}}) => {{
                const {{ open, run, model, share, counts, alive, wasmBytes }} = await import("/session.js");
                {body}
            }}""",
            values,
        )

    def answers(self, name: str, runtime: str, steps: list[dict[str, Any]], **choice: Any) -> list[dict[str, Any]]:
        """Open models/``name`` on ``runtime``, run ``steps`` and close it (see session.js for the shapes).

        Chunks are the short ones that SwiftShader ends up with anyway: longer ones cost the compiling of their shaders.
        """
        found: list[dict[str, Any]] = self.js(
            """const session = await open(`/models/${name}`, runtime, choice);
            try { return await run(session, steps); } finally { await session.close(); }""",
            name=name,
            runtime=runtime,
            steps=steps,
            choice={"chunk": SHORT_CHUNK} | choice,
        )
        return found
