"""The service worker: the page without a server, isolation without headers, and a new release beside an open page."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import altered_site
import page_models
import tabs
from handbill.manifest import NAME, Manifest
from links import link
from tabs import Mischief, Tab
from test_page_keep import NO_HANDLES
from test_page_store import names
from vendor import sha256_of

pytestmark = pytest.mark.page

GREEDY = {"temperature": 0, "max_tokens": 8}

WHOLE = """async () => {
    const whole = [];
    for (const name of await caches.keys()) {
        if (await (await caches.open(name)).match(new URL("site.json", location.href).href)) whole.push(name);
    }
    return whole;
}"""


OPFS = "places/opfs.js"
"""The module of every worker that reads or writes there."""


def wait_for_releases(tab: Tab, count: int) -> list[str]:
    """Wait until the service worker holds ``count`` whole releases; their caches."""
    tabs.until(tab.page, lambda: len(tab.page.evaluate(WHOLE)) == count, f"{count} whole releases")
    return list(tab.page.evaluate(WHOLE))


@pytest.mark.parametrize(("runtime", "where"), [("cpu", "cache"), ("wasm", "opfs")])
def test_after_one_visit_nothing_needs_the_server(
    chromium: Browser, tiny_site: Path, tmp_path: Path, runtime: str, where: str
) -> None:
    """Nor where there are no sync access handles: store, engine and the kernels' loader then use the Cache API."""
    site = altered_site.copy(tiny_site, tmp_path / "dist")
    if where == "cache":
        release(site, OPFS, NO_HANDLES + (site / OPFS).read_text(encoding="utf-8"))
    mischief = Mischief()
    context = chromium.new_context()
    with tabs.serving(site, mischief) as address:
        tab = Tab(context.new_page(), address)
        tab.open(f"?model=tiny&runtime={runtime}", settings=GREEDY)
        wait_for_releases(tab, 1)
        assert any(name.endswith(" files") for name in tab.page.evaluate("caches.keys()")) is (where == "cache")
        before = list(mischief.asked)
        answer = tab.ask("Hello")["ids"]
        assert mischief.asked == before, "what was loaded asks for nothing"
    tab.page.reload()
    tab.ready()
    assert tab.ask("Hello")["ids"] == answer
    assert tab.page.evaluate("crossOriginIsolated")
    second = Tab(context.new_page(), address)
    second.open(f"?model=tiny&runtime={runtime}")
    assert second.ask("Hello")["ids"] == answer
    assert tab.outside == second.outside == []
    context.close()


@contextlib.contextmanager
def plain_server(folder: Path) -> Iterator[str]:
    """``python -m http.server``, with no header of ours, over ``folder``."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_a_host_without_headers_at_a_sub_path_gets_threads_after_one_reload(
    chromium: Browser, tiny_site: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_site, tmp_path / "some" / "where", copy_function=link)
    context = chromium.new_context()
    with plain_server(tmp_path) as address:
        tab = Tab(context.new_page(), f"{address}some/where")
        tab.open("?model=tiny", settings=GREEDY, wait=False)
        tab.page.wait_for_function("crossOriginIsolated", timeout=tabs.LOADED_MS)
        assert "threads" in tab.ready()
        wait_for_releases(tab, 1)
        answer = tab.ask("Hello")["ids"]
    tab.page.reload()
    assert "threads" in tab.ready()
    assert tab.ask("Hello")["ids"] == answer
    assert [url for url in tab.outside if not url.startswith(f"blob:{address}")] == []
    context.close()


def release(dist: Path, name: str, text: str) -> None:
    """Change a file of ``dist`` and its line in site.json, as the next assembly would."""
    for path in (dist / name, dist / f"{name}.br", dist / f"{name}.gz"):
        path.unlink(missing_ok=True)  # They are links to another site's.
    (dist / name).write_text(text, encoding="utf-8")
    site = json.loads((dist / "site.json").read_text(encoding="utf-8"))
    site["files"][name] = {"bytes": len(text.encode()), "sha256": sha256_of(dist / name)}
    (dist / "site.json").unlink()
    (dist / "site.json").write_text(json.dumps(site), encoding="utf-8")


def test_a_new_release_takes_over_at_once_and_fetches_only_what_changed(
    chromium: Browser, tiny_site: Path, tmp_path: Path
) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(tiny_site, dist, copy_function=link)
    mischief = Mischief()
    context = chromium.new_context()
    with tabs.serving(dist, mischief) as address:
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny", settings=GREEDY)
        old = wait_for_releases(tab, 1)
        release(dist, "style.css", (dist / "style.css").read_text(encoding="utf-8") + "\nbody { --release: 2 }\n")
        mischief.asked.clear()
        tab.page.reload()
        tab.ready()
        both = wait_for_releases(tab, 2)
        assert {name for name, _ in mischief.asked} == {"site.json", "style.css"}
        styled = "getComputedStyle(document.body).getPropertyValue('--release')"
        assert tab.page.evaluate(styled) == "", "this visit began with the old release and stays with it"
        assert tab.ask("Hello")["ids"]
        tab.page.reload()
        tab.ready()
        assert tab.page.evaluate(styled) == "2"
        assert wait_for_releases(tab, 1) == [name for name in both if name not in old]
    context.close()


def test_a_release_that_is_not_whole_serves_nobody(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    """The site is being uploaded: site.json is there, and a file that it lists is still the old one."""
    dist = tmp_path / "dist"
    shutil.copytree(tiny_site, dist, copy_function=link)
    context = chromium.new_context()
    mischief = Mischief()
    with tabs.serving(dist, mischief) as address:
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny", settings=GREEDY)
        old = wait_for_releases(tab, 1)
        style = (dist / "style.css").read_text(encoding="utf-8")
        release(dist, "style.css", style + "\nbody { --release: 2 }\n")
        (dist / "style.css").write_text(style, encoding="utf-8")
        mischief.asked.clear()
        tab.page.reload()
        tab.ready()
        assert tab.ask("Hello")["ids"]
        assert wait_for_releases(tab, 1) == old
    tab.page.reload()
    tab.ready()
    assert tab.ask("Hello")["ids"]
    context.close()


def new_weights(dist: Path, name: str) -> Path:
    """A release whose model has another content under ``name`` (JSON, with a space more); the file."""
    folder = dist / "models" / "tiny"
    text = (folder / name).read_text(encoding="utf-8")
    manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
    release(dist, f"models/tiny/{name}", text + " ")
    listed = json.loads((dist / "site.json").read_text(encoding="utf-8"))
    del listed["files"][f"models/tiny/{name}"]  # The manifest lists it.
    (dist / "site.json").write_text(json.dumps(listed), encoding="utf-8")
    for entry in manifest["files"]:
        if entry["name"] == name:
            entry |= {"bytes": len(text.encode()) + 1, "sha256": sha256_of(folder / name)}
    release(dist, f"models/tiny/{NAME}", json.dumps(manifest))
    return folder / name


def test_a_new_model_is_here_before_its_release_takes_over(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    """The server goes away right after: the visit that takes the release over needs nothing from it."""
    dist = page_models.site(dist, tmp_path / "dist", ("tiny",))
    mischief = Mischief()
    context = chromium.new_context()
    with tabs.serving(dist, mischief) as address:
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny", settings=GREEDY)
        answer = tab.ask("Hello")["ids"]
        wait_for_releases(tab, 1)
        old = sha256_of(dist / "models" / "tiny" / "plan.json")
        new = sha256_of(new_weights(dist, "plan.json"))
        mischief.asked.clear()
        tab.page.reload()
        tab.ready()
        assert tab.ask("Hello")["ids"] == answer
        wait_for_releases(tab, 2)
        assert {name for name, _ in mischief.asked} - {"service.js"} == {"site.json", NAME, "plan.json"}
        assert {old, new} <= names(tab), "this visit began with the old release and may read it again"
    tab.page.reload()
    tab.ready()
    assert tab.ask("Hello")["ids"] == answer
    wait_for_releases(tab, 1)
    for _ in range(100):
        if old not in names(tab):
            break
        tab.page.wait_for_timeout(100)
    assert old not in names(tab)
    assert new in names(tab)
    context.close()


def test_nothing_leaves_the_origin_in_a_whole_session(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    """The server is the browser's proxy: whatever page, workers and service worker ask of any host, it hears."""
    site = page_models.site(dist, tmp_path / "dist", ("tiny-adapted",))
    manifest = Manifest.from_json((site / "models" / "tiny-adapted" / NAME).read_text(encoding="utf-8"))
    mischief = Mischief()
    with tabs.serving(site, mischief) as address:
        context = chromium.new_context(
            proxy={"server": address, "bypass": "<-loopback>"}, permissions=["clipboard-read", "clipboard-write"]
        )
        tab = Tab(context.new_page(), address)
        page = tab.page

        def asked_since(count: int) -> set[str]:
            lines = mischief.log[count:]
            assert all(line.startswith(f"GET {address}") for line in lines), lines
            return {line.removeprefix(f"GET {address}") for line in lines}

        tab.open(settings=GREEDY)
        wait_for_releases(tab, 1)
        assert asked_since(0)
        loaded = len(mischief.log)
        tab.ask("Hello <img src=https://outside.test/x.png>")
        page.click(".answer [data-act=copy]")
        page.locator(".answer button", has_text="Copied").wait_for()
        page.click(".answer [data-act=again]")
        tab.answer(0)
        page.click("#open-settings")
        page.locator("#storage-items li").nth(1).wait_for()
        page.select_option("#language-choice", "de")
        page.keyboard.press("Escape")
        page.click("#new-chat")
        tab.ask("And now?")
        assert asked_since(loaded) == set(), "what is loaded asks for nothing"

        tab.adapt("legal")
        tab.ask("Hello")
        assert asked_since(loaded) == {f"models/tiny-adapted/{manifest.adapters[0].file}"}, "as it is chosen first"
        page.click("#open-settings")
        loaded = len(mischief.log)
        with page.expect_navigation():
            page.select_option("#runtime-choice", "wasm")
        assert "WASM" in tab.ready()
        newer = {"service.js", "site.json"}
        its = {f"models/tiny-adapted/{manifest.graphs['wasm']}"}
        assert {name for name in asked_since(loaded) if not name.startswith("ort/")} - newer == its
        loaded = len(mischief.log)
        tab.ask("Hello")
        page.wait_for_timeout(500)
        assert asked_since(loaded) <= newer, "is there a newer release?"
    heard = len(mischief.log)
    page.reload()
    tab.ready()
    assert tab.ask("Hello")["ids"]
    assert len(mischief.log) == heard
    assert tab.outside == []
    context.close()
