"""The service worker alone, over a site of a few files: what it puts into a release, and what it does not."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

import tabs
from fault_server import Mischief, Refuse
from lone_page import lone_page, say
from test_page_keep import allow

pytestmark = pytest.mark.page

SERVICE = Path(__file__).resolve().parent.parent / "web" / "service.js"
MODULE = "ort/one.mjs"
"""A file that is kept when a page has loaded it."""

CONTENTS = {"index.html": "<!doctype html>", "style.css": "a {}" * 50_000, MODULE: "export const one = 1;"}

KEEP = """async () => {
    await navigator.serviceWorker.register("service.js");
    const { active } = await navigator.serviceWorker.ready;
    const said = new Promise((resolve) => {
        navigator.serviceWorker.addEventListener("message", ({ data }) => resolve(data), { once: true });
        navigator.serviceWorker.startMessages();
    });
    active.postMessage({ kind: "keep", used: [] });
    const answer = await said;
    if (!answer.gathered) return answer;
    const { name } = answer.gathered;
    active.postMessage({ kind: "whole", name });
    const listed = new URL("site.json", location.href).href;
    while (!(await caches.match(listed, { cacheName: name }))) await new Promise((later) => setTimeout(later, 20));
    return { name };
}"""
"""Have the site kept, and be whole: {name} of its cache, or what the service worker says instead."""

KEPT = """async ([name, file]) =>
    (await (await caches.match(new URL(file, location.href).href, { cacheName: name }))?.text()) ?? null"""


UNREADABLE = """
const open = CacheStorage.prototype.open;
CacheStorage.prototype.open = async function (name) {
    if (self.unreadable) throw new DOMException("Unexpected internal error.", "UnknownError");
    return open.call(this, name);
};
"""
"""Before service.js: a browser whose storage is damaged, as Chromium says it, once `unreadable` is set."""


def write(home: Path, **changes: str) -> Path:
    """A site with ``CONTENTS``, ``changes`` made by the stem of a file's name."""
    files = {}
    for name, text in CONTENTS.items():
        text = changes.get(Path(name).stem, text)
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
        files[name] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    shutil.copy(SERVICE, home)
    (home / "site.json").write_text(json.dumps({"models": [], "files": files}))
    return home


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A tab with a storage of its own."""
    context = chromium.new_context()
    yield context.new_page()
    context.close()


def load(page: Page) -> str:
    """What the page gets for ``MODULE``."""
    return str(page.evaluate("(name) => fetch(name).then((answer) => answer.text())", MODULE))


def test_a_host_that_answers_something_else_spoils_no_release(page: Page, tmp_path: Path) -> None:
    """A site is being uploaded, and its host has a page for whatever is not there: 200, and not the file."""
    mischief = Mischief({"one.mjs": [Refuse(200)]})
    with tabs.serving(write(tmp_path), mischief) as address:
        page.goto(address)
        name = page.evaluate(KEEP)["name"]
        assert load(page) == "No.\n"
        assert page.evaluate(KEPT, [name, MODULE]) is None
        assert load(page) == CONTENTS[MODULE]
        assert page.evaluate(KEPT, [name, MODULE]) == CONTENTS[MODULE]
        count = len(mischief.asked)
        assert load(page) == CONTENTS[MODULE]
        assert len(mischief.asked) == count, "it is kept now"


def test_a_storage_that_cannot_be_read_leaves_the_network(page: Page, tmp_path: Path) -> None:
    home = write(tmp_path)
    script = home / SERVICE.name
    script.write_text(UNREADABLE + script.read_text(encoding="utf-8"), encoding="utf-8")
    mischief = Mischief()
    with tabs.serving(home, mischief) as address:
        page.goto(address)
        page.evaluate(KEEP)
        (worker,) = page.context.service_workers
        assert load(page) == load(page) == CONTENTS[MODULE]
        assert mischief.log.count(f"GET /{MODULE}") == 1, "it is kept"
        worker.evaluate("self.unreadable = true")
        assert load(page) == CONTENTS[MODULE]
        page.reload()
        assert load(page) == CONTENTS[MODULE]
        assert mischief.log.count(f"GET /{MODULE}") == 3


def test_what_is_spoiled_in_a_release_is_not_carried_into_the_next(page: Page, tmp_path: Path) -> None:
    with tabs.serving(write(tmp_path)) as address:
        page.goto(address)
        old = page.evaluate(KEEP)["name"]
        page.evaluate(
            """async ([name, file]) => {
                const cache = await caches.open(name);
                await cache.put(new URL(file, location.href).href, new Response("<!doctype html>"));
            }""",
            [old, MODULE],
        )
        write(tmp_path, style="b {}")
        new = page.evaluate(KEEP)["name"]
        assert new != old
        assert page.evaluate(KEPT, [new, MODULE]) == CONTENTS[MODULE]
        assert page.evaluate(KEPT, [new, "style.css"]) == "b {}"


def test_a_new_release_waits_until_every_tab_of_the_old_one_is_closed(page: Page, tmp_path: Path) -> None:
    style = "fetch('style.css').then((answer) => answer.text())"
    with tabs.serving(write(tmp_path)) as address:
        page.goto(address)
        page.evaluate(KEEP)
        write(tmp_path, style="b {}")
        page.evaluate(KEEP)
        second = page.context.new_page()
        second.goto(address)
        assert second.evaluate(style) == CONTENTS["style.css"]
        second.reload()
        assert second.evaluate(style) == CONTENTS["style.css"], "the first may still load from it"
        page.close()
        assert second.evaluate(style) == CONTENTS["style.css"]
        third = second.context.new_page()
        second.close()
        third.goto(address)
        assert third.evaluate(style) == "b {}"


def test_a_browser_without_room_for_the_site_says_so_and_is_left_as_it_was(page: Page, tmp_path: Path) -> None:
    with tabs.serving(write(tmp_path)) as address:
        page.goto(address)
        allow(page, 20_000)
        said: dict[str, Any] = page.evaluate(KEEP)
        assert said == {"unkept": "full"}
        assert page.evaluate("caches.keys()") == []
        allow(page, None)
        assert page.evaluate(KEEP)["name"]


def test_a_browser_that_keeps_less_than_the_page_promises_is_said(chromium: Browser, tiny_site: Path) -> None:
    with lone_page(chromium, tiny_site) as tab:
        unkept = "new MessageEvent('message', { data: { unkept: 'full' } })"  # As service.js posts it.
        tab.page.evaluate(f"navigator.serviceWorker.dispatchEvent({unkept})")
        tab.page.locator("#notice", has_text="the next visit needs the network").wait_for()
        say(tab, {"kind": "stored", "slug": "tiny", "where": "nowhere", "why": "refused"})
        tab.page.locator("#notice", has_text="keeps nothing for this page").wait_for()
