"""Where models are kept and how much of it: quota, the Cache API, what is in use, and the list that deletes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext

import tabs
from bare_store import BYTES, PIECE, SHARD, Store, prefix, put, shas, stock
from fault_server import Corrupt, Mischief, Stall
from tabs import Tab
from test_page_access import serious

pytestmark = pytest.mark.page

GREEDY = {"temperature": 0, "max_tokens": 8}
NO_HANDLES = "delete FileSystemFileHandle.prototype.createSyncAccessHandle;\n"
NO_OPFS = "delete StorageManager.prototype.getDirectory;\n"
PROMISE = "StorageManager.prototype.estimate = async () => ({ quota: 1e12, usage: 0 });\n"
"""Code that makes a browser promise more room than it gives."""


def allow(tab: Any, quota: int | None) -> None:
    """Have the browser allow ``quota`` bytes to the origin of that page, None for what it pleases."""
    session = tab.context.new_cdp_session(tab)
    origin = "/".join(tab.url.split("/")[:3])
    session.send("Storage.overrideQuotaForOrigin", {"origin": origin, **({"quotaSize": quota} if quota else {})})


def cached(store: Store) -> list[str]:
    """What the Cache API holds of the site's files: their addresses within it."""
    found: list[str] = store.page.evaluate(
        """async () => {
            const found = [];
            for (const name of await caches.keys()) {
                for (const { url } of await (await caches.open(name)).keys()) found.push(url.split("/kept-")[1]);
            }
            return found.sort();
        }"""
    )
    return found


@pytest.mark.parametrize("lack", [NO_HANDLES, NO_OPFS])
def test_a_browser_without_opfs_keeps_models_in_the_cache_api(
    context: BrowserContext, stocked: Path, lack: str
) -> None:
    prefix(context, "store.js", lack)
    mischief = Mischief({SHARD: [Corrupt(5)]})
    with tabs.serving(stocked, mischief) as address:
        store = Store(context, address)
        assert (store.end()["kind"], store.end()["where"]) == ("stored", "cache")
        wanted = shas(stocked)
        pieces = [f"{wanted[SHARD]}/{i}" for i in range(3)]
        small = [part for name in ("plan.json", "tokenizer.json") for part in (wanted[name], f"{wanted[name]}/0")]
        assert cached(store) == sorted([wanted[SHARD], *pieces, *small])
        assert mischief.sent[SHARD] == 2 * BYTES
        store.page.close()
        mischief.asked.clear()
        again = Store(context, address)
        assert again.end()["where"] == "cache"
        assert not mischief.of(SHARD, "plan.json", "tokenizer.json")
        # What the engine reads is what was sent.
        digest = again.page.evaluate(
            """async ({ name, sha256, bytes }) => {
                const { KeptFiles } = await import("./files.js");
                const base = new URL("./", location.href).href;
                const files = new KeptFiles({ entries: [{ name, sha256, bytes }], base, where: "cache" });
                const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", await files.read(name)));
                return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
            }""",
            {"name": SHARD, "sha256": wanted[SHARD], "bytes": BYTES},
        )
        assert digest == wanted[SHARD]


def test_the_cache_api_goes_on_with_the_piece_that_a_closed_tab_lacked(context: BrowserContext, stocked: Path) -> None:
    prefix(context, "store.js", NO_HANDLES)
    mischief = Mischief({SHARD: [None, *[Stall(1000)] * 9]})  # A busy machine has the store ask a second time.
    with tabs.serving(stocked, mischief) as address:
        store = Store(context, address)
        store.page.wait_for_function(f"() => heard.some(({{ done }}) => done >= {PIECE})")
        of_shard = shas(stocked)[SHARD]
        for _ in range(200):
            if len(mischief.of(SHARD)) >= 3 and any(name.startswith(of_shard) for name in cached(store)):
                break
            store.page.wait_for_timeout(50)
        store.page.close()
        mischief.faults.clear()
        mischief.asked.clear()
        store = Store(context, address)
        assert store.end()["where"] == "cache"
        asked = sorted(str(asked) for _, asked in mischief.of(SHARD))
        assert asked == [f"bytes={PIECE}-{2 * PIECE - 1}", f"bytes={2 * PIECE}-{BYTES - 1}"]


def test_a_model_that_has_no_room_is_not_begun(context: BrowserContext, stocked: Path) -> None:
    quota = f"StorageManager.prototype.estimate = async () => ({{ quota: {BYTES + 7000}, usage: 5000 }});\n"
    prefix(context, "store.js", quota)
    mischief = Mischief()
    with tabs.serving(stocked, mischief) as address:
        end = Store(context, address).end()
        assert (end["kind"], end["where"], end["why"]) == ("stored", "nowhere", "full")
        assert not mischief.of(SHARD, "plan.json", "tokenizer.json")
        context.unroute_all()
        prefix(context, "store.js", quota.replace("5000", "4000"))
        assert Store(context, address).end()["where"] == "opfs"


def test_a_browser_that_runs_full_is_left_as_it_was(context: BrowserContext, stocked: Path) -> None:
    """What estimate() says is no promise. Small files that have come before would only lie there."""
    prefix(context, "store.js", PROMISE)
    with tabs.serving(stocked) as address:
        blank = context.new_page()
        blank.goto(f"{address}site.json")
        allow(blank, BYTES - 1)
        store = Store(context, address)
        end = store.end()
        assert (end["kind"], end["where"], end["why"]) == ("stored", "nowhere", "full")
        assert store.files() == {}
        allow(blank, None)
        store.page.close()
        assert Store(context, address).end()["where"] == "opfs"


def test_what_an_earlier_release_left_makes_room_first(context: BrowserContext, dist: Path, tmp_path: Path) -> None:
    site = stock(dist, tmp_path / "dist")
    with tabs.serving(site) as address:
        store = Store(context, address)
        store.end()
        store.page.close()
        put(site, "big", {SHARD: bytes(BYTES), "plan.json": b"{}", "tokenizer.json": b"[]", "model.onnx": b"graph"})
        blank = context.new_page()
        blank.goto(f"{address}site.json")
        allow(blank, int(1.5 * BYTES))
        store = Store(context, address)
        assert store.end()["where"] == "opfs"
        assert store.files()[shas(site)[SHARD]] == BYTES


def test_the_settings_list_what_is_kept_and_delete_it(chromium: Browser, tiny_site: Path) -> None:
    mischief = Mischief()
    with tabs.serving(tiny_site, mischief) as address:
        context = chromium.new_context(locale="de-CH")
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny", settings={**GREEDY, "system": "Be brief, and answer in one sentence."})
        assert tab.ask("Hello")["ids"]
        whole = """async () => {
            for (const name of await caches.keys()) {
                if (await (await caches.open(name)).match(new URL("site.json", location.href).href)) return true;
            }
        }"""
        tabs.until(tab.page, lambda: tab.page.evaluate(whole), "a whole release")
        tab.page.click("#open-settings")
        lines = tab.page.locator("#storage-items li")
        lines.nth(2).wait_for()
        assert lines.all_inner_texts()[0].startswith("tiny\n")
        assert "von dieser Seite benutzt" in lines.nth(0).inner_text()
        assert "Besuche ohne Netz" in lines.nth(1).inner_text()
        assert "Systemanweisungen" in lines.nth(2).inner_text()
        assert "dieser Browser erlaubt" in tab.page.inner_text("#storage-sum")
        tab.page.select_option("#language-choice", "en")
        assert "used by this page" in lines.nth(0).inner_text()
        assert serious(tab.page) == []
        for button in lines.locator("button").all():
            box = button.bounding_box()
            assert box and min(box["width"], box["height"]) >= 44

        # By keyboard: the first press asks, moving on takes it back, the second press deletes.
        keys = tab.page.keyboard
        lines.nth(0).locator("button").focus()
        keys.press("Enter")
        assert tab.page.evaluate("document.activeElement.textContent") == "Really delete?"
        assert "tiny" in str(tab.page.evaluate("document.activeElement.ariaLabel"))
        keys.press("Tab")
        assert lines.nth(0).locator("button").inner_text() == "Delete"
        keys.press("Shift+Tab")
        keys.press("Enter")
        keys.press("Enter")
        lines.nth(2).wait_for(state="detached")
        assert "the next visit downloads it again" in tab.page.inner_text("#storage-said")
        assert tab.page.evaluate("document.activeElement.dataset.item") == "site"
        for _ in range(2):
            count = lines.count()
            keys.press("Enter")
            keys.press("Enter")
            lines.nth(count - 1).wait_for(state="detached")
        assert "needs the network" in tab.page.inner_text("#storage-said") or lines.count() == 0
        keys.press("Escape")
        assert tab.ask("And now?")["ids"], "this page goes on"
        assert tab.page.evaluate("caches.keys()") == []

        mischief.asked.clear()
        tab.page.reload()
        tab.ready()
        assert len([name for name, _ in mischief.asked if name.endswith(".bin")]) == 1
        assert tab.errors == []
        context.close()


def test_the_browser_is_asked_once_to_keep_it_when_a_download_begins(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        context = chromium.new_context()
        context.route("**/pyodide.asm.wasm", lambda _: None)  # The engine has nothing to do with it.
        context.add_init_script(
            """self.persisted = 0;
            StorageManager.prototype.persist = async () => ++persisted > 0;"""
        )
        tab = Tab(context.new_page(), address)
        for times in (1, 0):  # The second visit downloads nothing.
            tab.open("?model=tiny", wait=False)
            tab.page.wait_for_function("() => document.getElementById('status-text').textContent.includes('Python')")
            assert tab.page.evaluate("persisted") == times
        context.close()


def test_a_full_browser_runs_the_model_from_memory_and_says_so(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        context = chromium.new_context()
        blank = context.new_page()
        blank.goto(f"{address}site.json")
        allow(blank, 50_000)
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny", settings=GREEDY)
        assert "no room" in tab.page.inner_text("#notice")
        assert "at each visit" in tab.page.inner_text("#fact-load")
        assert tab.ask("Hello")["ids"]
        context.close()
