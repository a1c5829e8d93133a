"""The site as one .html on file://, with the network off."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import real_model
import single
from handbill.manifest import NAME
from tabs import LOADED_MS, Tab
from test_page import GREEDY, PLAIN_QUESTION, native_answer

MODULES = [
    ("a.js", 'import { x } from "./b/c.js";', 'import { x } from "handbill/b/c.js";'),
    ("b/c.js", "export * from '../a.js'", 'export * from "handbill/a.js"'),
    ("pyscript/core.js", 'e=import("./x.js"),f=import(u)', 'e=import("handbill/pyscript/x.js"),f=import(u)'),
    ("a.js", "await import(new URL(n, BASE).href)", "await handbillImport(new URL(n, BASE).href)"),
    ("b/c.js", 'new URL("./", import.meta.url)', 'new URL("./", "handbill://site/b/c.js")'),
    ("pyodide/pyodide.mjs", "import.meta.url; import(x)", "import.meta.url; import(x)"),
    ("a.js", 'object.import(x); import "other"', 'object.import(x); import "other"'),
]


@pytest.mark.parametrize(("name", "text", "wanted"), MODULES)
def test_imports_become_linkable(name: str, text: str, wanted: str) -> None:
    assert single.linkable(name, text) == wanted


def test_what_cannot_run_this_way_is_refused(dist: Path, tmp_path: Path) -> None:
    manifest = real_model.manifest()
    large = [dataclasses.replace(entry, bytes=entry.bytes * 5) for entry in manifest.files]
    target = tmp_path / "page.html"
    target.write_text("an earlier one")
    for change, words in (({"plan": ""}, "has no plan for our own kernels"), ({"files": large}, "serve dist/")):
        folder = tmp_path / words[:3] / "models" / manifest.slug
        folder.mkdir(parents=True)
        (folder / NAME).write_text(dataclasses.replace(manifest, **change).to_json())  # type: ignore[arg-type]
        with pytest.raises(single.SingleFileError, match=words):
            single.write(folder.parent.parent, manifest.slug, target)
    broken = tmp_path / "broken"
    (broken / "models" / manifest.slug).mkdir(parents=True)
    (broken / "models" / manifest.slug / NAME).write_text(manifest.to_json())
    for name in ("site.json", "icon.svg", "style.css"):
        (broken / name).write_bytes((dist / name).read_bytes())
    for entry in json.loads((dist / "site.json").read_text())["files"]:
        (broken / entry).parent.mkdir(parents=True, exist_ok=True)
        (broken / entry).exists() or (broken / entry).symlink_to(dist / entry)
    for entry in manifest.files:
        (broken / "models" / manifest.slug / entry.name).symlink_to(dist / "models" / manifest.slug / entry.name)
    (broken / "index.html").unlink()
    (broken / "index.html").write_text("<html></html>")
    with pytest.raises(single.SingleFileError, match="assemble the site again"):
        single.write(broken, manifest.slug, target)
    assert target.read_text() == "an earlier one"
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.page
@pytest.mark.model
def test_a_damaged_copy_says_so(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    single.write(dist, "smollm2-135m", tmp_path / "whole.html")
    whole = (tmp_path / "whole.html").read_bytes()
    (tmp_path / "cut.html").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    at = whole.rindex(b"weights-00.bin") + 5000
    flipped[at : at + 4] = b"AAAA" if whole[at : at + 4] != b"AAAA" else b"BBBB"
    (tmp_path / "flipped.html").write_bytes(flipped)
    for name in ("cut.html", "flipped.html"):
        tab = Tab(chromium.new_page(), tmp_path.as_uri())
        tab.open(name, wait=False)
        tab.page.wait_for_function("() => !document.getElementById('alert').hidden", timeout=LOADED_MS)
        assert tab.alarm().startswith("The file of this page is damaged: copy it again")
        tab.page.close()


@pytest.mark.page
@pytest.mark.model
def test_a_double_click_without_a_network(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    single.write(dist, "smollm2-135m", tmp_path / "handbill.html")
    context = chromium.new_context(offline=True)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    tab = Tab(context.new_page(), tmp_path.as_uri())
    tab.open("handbill.html", settings=GREEDY)
    assert tab.ready() == "processor, one thread"
    assert tab.ask(PLAIN_QUESTION)["ids"] == native_answer(real_model.FOLDER, PLAIN_QUESTION)
    assert tab.page.inner_text("#fact-load").endswith("inside this file")
    tab.page.click("#new-chat")
    assert tab.ask("Who are you?")["text"]
    assert [url for url in asked if not url.startswith(("blob:", "data:"))] == [(tmp_path / "handbill.html").as_uri()]
    assert tab.errors == []
    context.close()
