"""What the store removes, and when it must not: a model in use, a release that has no room."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext

import tabs
from bare_store import BYTES, CHIP, SHARD, SMALL, Store, prefix, put, shas, stock
from fault_server import Mischief, Refuse, Stall
from handbill.manifest import NAME
from test_page_keep import PROMISE, allow

pytestmark = pytest.mark.page

OTHER = {"plan.json": b"{}", "tokenizer.json": b"[]", "model.onnx": b"graph"}
"""The small files of another release."""


def test_deleting_is_refused_while_another_tab_uses_a_model(context: BrowserContext, stocked: Path) -> None:
    with tabs.serving(stocked) as address:
        first, second = Store(context, address), Store(context, address)
        first.end(), second.end()
        second.say(kind="survey")
        kept = second.hear("kept")
        assert kept["items"] == [{"item": "model big", "title": "Big", "bytes": BYTES + 2400, "state": "elsewhere"}]
        assert 0 < BYTES + 2400 <= kept["used"] < kept["quota"]
        second.say(kind="discard", item="model big")
        kept = second.hear("kept")
        assert kept["refused"] == "elsewhere"
        assert second.files()[shas(stocked)[SHARD]] == BYTES
        first.page.close()
        for _ in range(200):  # The browser lets go of a closed tab's locks when it gets to it.
            second.say(kind="survey")
            if second.hear("kept")["items"][0]["state"] == "here":
                break
            second.page.wait_for_timeout(50)
        second.say(kind="discard", item="model big")
        kept = second.hear("kept")
        assert (kept["refused"], kept["items"]) == ("", [])
        assert second.files() == {}


def test_a_model_on_its_way_is_not_deleted(context: BrowserContext, stocked: Path) -> None:
    with tabs.serving(stocked, Mischief({SHARD: [Stall(5000)]})) as address:
        store = Store(context, address)
        store.page.wait_for_function("() => heard.some(({ done }) => done > 0)")
        store.say(kind="discard", item="model big")
        kept = store.hear("kept")
        assert kept["refused"] == kept["items"][0]["state"] == "coming"


def test_two_models_share_a_file_and_one_is_deleted(context: BrowserContext, dist: Path, tmp_path: Path) -> None:
    site = stock(dist, tmp_path / "dist")
    listed = site / "site.json"
    listed.write_text(listed.read_text().replace('{"slug": "big"}', '{"slug": "big"}, {"slug": "other"}'))
    shared = (site / "models" / "big" / SHARD).read_bytes()
    put(site, "other", {SHARD: shared, "plan.json": b"1", "tokenizer.json": b"2", "model.onnx": b"3"})
    with tabs.serving(site) as address:
        store = Store(context, address, "other")
        store.end()
        store.page.close()
        store = Store(context, address, "big")
        store.end()
        other = shas(site, "other")
        store.say(kind="survey")
        assert [item["item"] for item in store.hear("kept")["items"]] == ["model big", "model other"]
        store.say(kind="discard", item="model other")
        assert [item["item"] for item in store.hear("kept")["items"]] == ["model big"]
        assert {shas(site)[SHARD]} <= set(store.files())
        assert not {other["plan.json"], other["tokenizer.json"]} & set(store.files())


def test_a_model_is_deleted_while_the_check_after_an_answer_reads_it(context: BrowserContext, stocked: Path) -> None:
    """The check waits, a file open, while the next answer is written; what is open cannot be removed."""
    with tabs.serving(stocked) as address:
        store = Store(context, address)
        assert store.end()["where"] == "opfs"
        store.page.evaluate(
            """for (const kind of ["ask", "done", "ask"]) channel.postMessage(JSON.stringify({ kind }));"""
        )
        store.page.wait_for_timeout(500)
        store.say(kind="discard", item="model big")
        kept = store.hear("kept", "fault")
        assert (kept["refused"], kept["items"]) == ("", [])
        assert store.files() == {}


def test_a_model_that_is_open_elsewhere_in_the_tab_is_said_to_be_read(context: BrowserContext, stocked: Path) -> None:
    """As the engine does while it opens the model."""
    with tabs.serving(stocked) as address:
        store = Store(context, address)
        assert store.end()["where"] == "opfs"
        store.page.evaluate(
            """(sha256) => new Promise((opened) => {
                const code = `onmessage = async ({ data: { sha256, base } }) => {
                    const { openPlace } = await import(base + "place.js");
                    self.open = await (await openPlace(new URL(base))).read({ sha256 });
                    postMessage("open");
                };`;
                self.engine = new Worker(URL.createObjectURL(new Blob([code])));
                engine.onmessage = opened;
                engine.postMessage({ sha256, base: new URL("./", location.href).href });
            })""",
            shas(stocked)[SHARD],
        )
        store.say(kind="discard", item="model big")
        kept = store.hear("kept")
        assert (kept["refused"], kept["items"][0]["state"]) == ("reading", "here")
        assert store.files()[shas(stocked)[SHARD]] == BYTES
        store.page.evaluate("engine.terminate()")
        store.page.wait_for_timeout(500)
        store.say(kind="discard", item="model big")
        assert store.hear("kept")["items"] == []


GATHERED = """async ({ models, manifest }) => {
    const name = "a release that was gathered";
    await (await caches.open(name)).put("models/big/manifest.json", new Response(manifest));
    const site = { ...(await (await fetch("site.json")).json()), models };
    store.onmessage = ({ data }) => console.info(data.ready === name ? READY : data);
    channel.onmessage = null;
    store.postMessage({ release: { name, site } });
}"""
READY = "The release is ready."


def gathered(store: Store, site: Path, models: tuple[str, ...] = ("big",)) -> bool:
    """Tell the store of a newer release of ``site`` with ``models``; whether it says that the release is ready."""
    manifest = (site / "models" / "big" / NAME).read_text(encoding="utf-8")
    release = {"models": [{"slug": slug} for slug in models], "manifest": manifest}
    with store.page.expect_console_message(
        lambda message: message.text == READY or "release of the site waits" in message.text
    ) as said:
        store.page.evaluate(GATHERED.replace("READY", f'"{READY}"'), release)
    return said.value.text == READY


def held(store: Store, sha256: str) -> bool:
    """Whether a tab holds the file."""
    names: list[str] = store.page.evaluate("navigator.locks.query().then(({ held }) => held.map(({ name }) => name))")
    return any(name.endswith(sha256) for name in names)


@pytest.mark.parametrize("promise", ["", PROMISE])
def test_a_release_whose_model_has_no_room_or_does_not_run_here_is_not_declared_whole(
    context: BrowserContext, dist: Path, tmp_path: Path, promise: str
) -> None:
    """It would be taken over, and the model in use, which works, would be none of it."""
    prefix(context, "store.js", promise)
    site = stock(dist, tmp_path / "dist")
    with tabs.serving(site) as address:
        store = Store(context, address)
        assert store.end()["where"] == "opfs"
        used = store.files()
        put(site, "big", {SHARD: bytes(BYTES), **OTHER})
        assert not gathered(store, site, models=()), "no model that runs here"
        allow(store.page, int(1.5 * BYTES))
        assert not gathered(store, site), "no room"
        assert store.files() == used
        assert not held(store, shas(site)[SHARD])
        allow(store.page, None)
        assert gathered(store, site)
        assert store.files()[shas(site)[SHARD]] == BYTES


def test_what_takes_over_from_a_graphics_chip_is_kept_after_the_first_answer_and_then_in_every_release(
    context: BrowserContext, dist: Path, tmp_path: Path
) -> None:
    """Not before: nobody waits for it. Where it cannot be had, nothing is said, and the next visit tries again."""
    prefix(context, "store.js", CHIP)
    site = stock(dist, tmp_path / "dist")
    mischief = Mischief({"plan.json": [Refuse(404)]})
    with tabs.serving(site, mischief) as address:
        store = Store(context, address, runtime="")
        assert store.end()["where"] == "opfs"
        assert [session["name"] for session in store.hear("chosen")["sessions"]] == ["webgpu", "cpu", "wasm"]
        assert gathered(store, site), "the release of this very page does not wait for it"
        plan = shas(site)["plan.json"]
        assert mischief.of("plan.json") == []
        with store.page.expect_console_message(lambda message: "nothing could take over" in message.text):
            store.say(kind="done")
        assert not held(store, plan), "a model is not on its way for ever"
        store.page.close()

        store = Store(context, address, runtime="")
        assert store.end()["where"] == "opfs"
        store.say(kind="done")
        store.wait_for(plan)
        store.say(kind="survey")
        assert store.hear("kept")["items"] == [
            {"item": "model big", "title": "Big", "bytes": BYTES + sum(map(len, SMALL.values())), "state": "here"}
        ]
        store.page.close()

        store = Store(context, address, runtime="")  # It is this visit's from its beginning on.
        assert store.end()["where"] == "opfs" and held(store, plan)
        put(site, "big", {SHARD: (site / "models" / "big" / SHARD).read_bytes(), **OTHER})
        mischief.faults["plan.json"] = [Refuse(404)]
        assert not gathered(store, site)
        assert not held(store, shas(site)["plan.json"])
        assert gathered(store, site)
        assert store.files()[shas(site)["plan.json"]] == len(OTHER["plan.json"])
