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

import tabs
from links import link
from tabs import Mischief, Tab
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


def wait_for_releases(tab: Tab, count: int) -> list[str]:
    """Wait until the service worker holds ``count`` whole releases; their caches."""
    for _ in range(tabs.LOADED_MS // 100):
        names: list[str] = tab.page.evaluate(WHOLE)
        if len(names) == count:
            return names
        tab.page.wait_for_timeout(100)
    raise AssertionError(f"{names} instead of {count} releases")


def test_after_one_visit_nothing_needs_the_server(chromium: Browser, tiny_site: Path) -> None:
    mischief = Mischief()
    context = chromium.new_context()
    with tabs.serving(tiny_site, mischief) as address:
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny", settings=GREEDY)
        wait_for_releases(tab, 1)
        before = list(mischief.asked)
        answer = tab.ask("Hello")["ids"]
        assert mischief.asked == before, "what was loaded asks for nothing"
    tab.page.reload()
    tab.ready()
    assert tab.ask("Hello")["ids"] == answer
    assert tab.page.evaluate("crossOriginIsolated")
    second = Tab(context.new_page(), address)
    second.open("?model=tiny")
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
