"""The store: what lies in OPFS between visits, and what happens to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

import tabs
from handbill.manifest import NAME, File, Manifest
from tabs import Mischief, Tab

pytestmark = pytest.mark.page

GREEDY = {"temperature": 0, "max_tokens": 8}

FOLDER = """
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle(`handbill ${encodeURIComponent(location.pathname)}`);
"""


def shard_of(dist: Path) -> File:
    """The tiny model's first shard."""
    manifest = Manifest.from_json((dist / "models" / "tiny" / NAME).read_text(encoding="utf-8"))
    return next(entry for entry in manifest.files if entry.name == manifest.weights[0])


def names(tab: Tab) -> set[str]:
    """Names of the files in OPFS."""
    script = f"async () => {{ {FOLDER} return Array.fromAsync(folder.keys()); }}"
    listed: list[str] = tab.page.evaluate(script)
    return set(listed)


def wait_for_file(tab: Tab, sha256: str) -> None:
    """Wait until a file is in OPFS."""
    tabs.until(tab.page, lambda: sha256 in names(tab), sha256)


def overwrite(tab: Tab, name: str, *, keep: bool, at: int, data: list[int]) -> None:
    """Write ``data`` into the file ``name`` of OPFS from ``at`` on; ``keep`` what else it holds, or cut it there."""
    tab.page.evaluate(
        f"""async ({{ name, keep, at, data }}) => {{
            {FOLDER}
            const writable = await (await folder.getFileHandle(name)).createWritable({{ keepExistingData: keep }});
            await writable.write({{ type: "write", position: at, data: Uint8Array.from(data) }});
            await writable.close();
        }}""",
        {"name": name, "keep": keep, "at": at, "data": data},
    )


def test_a_file_damaged_on_the_device_is_found_after_the_answer_and_fetched_again_alone(
    chromium: Browser, tiny_site: Path
) -> None:
    shard = shard_of(tiny_site)
    mischief = Mischief()
    with tabs.serving(tiny_site, mischief) as address:
        context = chromium.new_context()
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny", settings=GREEDY)
        whole = tab.ask("Hello")["ids"]
        overwrite(tab, shard.sha256, keep=True, at=200, data=[0x5A] * 64)
        tab.page.reload()
        tab.ready()  # Its name and its size are right: the visit is not held up.
        tab.ask("Hello")
        tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
        assert "was damaged" in tab.alarm()
        assert shard.name in tab.alarm()
        assert shard.sha256 not in names(tab)
        mischief.asked.clear()
        tab.page.click("#retry")
        tab.page.wait_for_function("() => document.getElementById('alert')?.hidden")
        tab.ready()
        assert [name for name, _ in mischief.asked if name.endswith((".bin", ".onnx", "tokenizer.json"))] == [
            shard.name
        ]
        assert tab.ask("Hello")["ids"] == whole
        context.close()


def test_a_file_of_the_wrong_length_is_fetched_again_before_anything_is_opened(
    chromium: Browser, tiny_site: Path
) -> None:
    shard = shard_of(tiny_site)
    mischief = Mischief()
    with tabs.serving(tiny_site, mischief) as address:
        context = chromium.new_context()
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny", settings=GREEDY)
        overwrite(tab, shard.sha256, keep=False, at=0, data=[0] * 100)
        mischief.asked.clear()
        tab.page.reload()
        tab.ready()
        assert [name for name, _ in mischief.asked].count(shard.name) == 1
        assert tab.ask("Hello")["ids"]
        assert not tab.alarm()
        context.close()
