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
        tab.page.evaluate(
            f"""async (name) => {{
                {FOLDER}
                const writable = await (await folder.getFileHandle(name)).createWritable({{ keepExistingData: true }});
                await writable.write({{ type: "write", position: 200, data: new Uint8Array(64).fill(0x5a) }});
                await writable.close();
            }}""",
            shard.sha256,
        )
        tab.page.reload()
        tab.ready()  # Its name and its size are right: the visit is not held up.
        tab.ask("Hello")
        tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
        assert "was damaged" in tab.alarm()
        assert shard.name in tab.alarm()
        assert shard.sha256 not in names(tab)
        mischief.asked.clear()
        tab.page.click("#retry")
        tab.page.wait_for_function("() => document.getElementById('alert').hidden")
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
        tab.page.evaluate(
            f"""async (name) => {{
                {FOLDER}
                const writable = await (await folder.getFileHandle(name)).createWritable();
                await writable.write(new Uint8Array(100));
                await writable.close();
            }}""",
            shard.sha256,
        )
        mischief.asked.clear()
        tab.page.reload()
        tab.ready()
        assert [name for name, _ in mischief.asked].count(shard.name) == 1
        assert tab.ask("Hello")["ids"]
        assert not tab.alarm()
        context.close()
