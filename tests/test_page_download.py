"""Downloads against servers and networks that fail, with the bytes that are asked for afterwards."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Error

import tabs
from bare_store import BYTES, HURRY, PIECE, SHARD, Store, prefix, put, shas, stock
from fault_server import Claim, Corrupt, Drop, Fault, Gzip, Mischief, Refuse, Stall, Whole

pytestmark = pytest.mark.page

FIRST, SECOND, THIRD = "bytes=0-4194303", "bytes=4194304-8388607", "bytes=8388608-9388607"
"""The three requests for the shard."""


@pytest.fixture
def context(context: BrowserContext) -> BrowserContext:
    """A browser's storage of its own, whose store is impatient."""
    prefix(context, "store.js", HURRY)
    return context


def ranges(mischief: Mischief, name: str = SHARD) -> list[str | None]:
    """The Range headers of the requests for a file, the first requests of its pieces in their order."""
    return [asked for _, asked in mischief.of(name)]


def test_a_shard_comes_in_pieces_side_by_side(context: BrowserContext, stocked: Path) -> None:
    mischief = Mischief()
    with tabs.serving(stocked, mischief) as address:
        store = Store(context, address)
        end = store.end()
        assert (end["kind"], end["where"], end["why"]) == ("stored", "opfs", "")
        assert ranges(mischief)[0] == FIRST, "one alone, until the server is known to give ranges"
        assert sorted(ranges(mischief)[1:], key=str) == [SECOND, THIRD]
        assert ranges(mischief, "tokenizer.json") == [None], "what is one piece may come compressed"
        assert mischief.sent[SHARD] == BYTES
        wanted = shas(stocked)
        assert "model.onnx" not in dict(mischief.asked), "the processor has no use for it"
        assert store.files() == {
            wanted[SHARD]: BYTES,
            wanted["plan.json"]: 1000,
            wanted["tokenizer.json"]: 1400,
        }
        last = store.heard("progress")[-1]
        assert last["done"] == last["total"] == BYTES + 2400


@pytest.mark.parametrize(
    ("fault", "asked", "sent"),
    [
        # The connection breaks within a piece: its rest is asked for from that byte on.
        (Drop(1_000_000), [FIRST, "bytes=1000000-4194303", SECOND, THIRD], BYTES),
        # Not a byte comes any more, and nothing says so.
        (Stall(2_000_000), [FIRST, "bytes=2000000-4194303", SECOND, THIRD], BYTES),
        # A proxy says that the body is shorter than it is.
        (Claim(123_456), [FIRST, "bytes=123456-4194303", SECOND, THIRD], BYTES),
        # One flipped bit: the whole file once more, and no other.
        (Corrupt(77), [FIRST, FIRST, SECOND, SECOND, THIRD, THIRD], 2 * BYTES),
        # A fault of the moment.
        (Refuse(500), [FIRST, FIRST, SECOND, THIRD], BYTES),
        (Refuse(503, {"Retry-After": "7"}), [FIRST, FIRST, SECOND, THIRD], BYTES),
        (Refuse(429), [FIRST, FIRST, SECOND, THIRD], BYTES),
        # A host without ranges: the answer to the first request is the file.
        (Whole(), [FIRST], BYTES),
        # A range of the compressed file, which no browser can read.
        (Gzip(), [FIRST, FIRST, SECOND, THIRD], None),
    ],
    ids=lambda value: repr(value) if isinstance(value, Fault) else "",
)
def test_what_went_wrong_is_asked_for_again_and_nothing_else(
    context: BrowserContext, stocked: Path, fault: Fault, asked: list[str | None], sent: int | None
) -> None:
    mischief = Mischief({SHARD: [fault]})
    with tabs.serving(stocked, mischief) as address:
        store = Store(context, address)
        assert store.end()["kind"] == "stored"
        assert sorted(ranges(mischief), key=str) == sorted(asked, key=str)
        if sent is not None:
            assert mischief.sent[SHARD] == sent
        assert [name for name, _ in mischief.asked].count("plan.json") == 1
        assert store.files()[shas(stocked)[SHARD]] == BYTES


def test_a_body_that_is_said_to_be_longer_counts_as_far_as_it_came(context: BrowserContext, stocked: Path) -> None:
    """The end of the connection is noticed. The browser may have thrown away what came last."""
    mischief = Mischief({SHARD: [Claim(PIECE + 5)]})
    with tabs.serving(stocked, mischief) as address:
        store = Store(context, address)
        assert store.end()["kind"] == "stored"
        first, *others = (str(asked) for asked in ranges(mischief))
        assert first == FIRST
        assert {SECOND, THIRD} <= set(others)
        assert len(others) <= 3
        assert all(asked in (SECOND, THIRD) or asked.endswith(f"-{PIECE - 1}") for asked in others)
        assert store.files()[shas(stocked)[SHARD]] == BYTES


def test_a_host_that_compresses_everything_is_taken_as_it_is(context: BrowserContext, stocked: Path) -> None:
    """Nobody can read a range of its compressed bytes, and the browser does not say why: the third try has none."""
    mischief = Mischief({SHARD: [Gzip(), Gzip(), Gzip()], "plan.json": [Gzip()]})
    with tabs.serving(stocked, mischief) as address:
        store = Store(context, address)
        assert store.end()["kind"] == "stored"
        assert ranges(mischief) == [FIRST, FIRST, None]
        assert store.files()[shas(stocked)[SHARD]] == BYTES


@pytest.mark.parametrize(("status", "times"), [(404, 1), (403, 1), (500, 8)])
def test_a_file_that_cannot_be_had_is_named(context: BrowserContext, stocked: Path, status: int, times: int) -> None:
    mischief = Mischief({SHARD: [Refuse(status)] * 20})
    with tabs.serving(stocked, mischief) as address:
        store = Store(context, address)
        end = store.end()
        assert (end["kind"], end["fault"]) == ("fault", "download")
        assert SHARD in end["detail"]
        assert str(status) in end["detail"]
        assert len(ranges(mischief)) == times
        assert all(said["pause"] in (0, 1, 2, 4, 8, 16, 30) for said in store.heard("progress"))
        assert any(said["pause"] for said in store.heard("progress")) == (times > 1), "the wait is said"


def test_a_shard_that_stays_corrupt_is_fetched_twice(context: BrowserContext, stocked: Path) -> None:
    mischief = Mischief({SHARD: [Corrupt(5_000_000)] * 20})
    with tabs.serving(stocked, mischief) as address:
        store = Store(context, address)
        end = store.end()
        assert (end["kind"], end["fault"]) == ("fault", "corrupt")
        assert SHARD in end["detail"]
        assert mischief.sent[SHARD] == 2 * BYTES
        assert shas(stocked)[SHARD] not in store.files()


def test_a_file_of_another_length_on_the_server_is_said_at_once(
    context: BrowserContext, dist: Path, tmp_path: Path
) -> None:
    other = stock(dist, tmp_path / "dist")
    shard = other / "models" / "big" / SHARD
    shard.unlink()
    shard.write_bytes(bytes(BYTES + 1))
    mischief = Mischief()
    with tabs.serving(other, mischief) as address:
        end = Store(context, address).end()
        assert (end["kind"], end["fault"]) == ("fault", "corrupt")
        assert f"{BYTES + 1} bytes on the server" in end["detail"]
        assert ranges(mischief) == [FIRST]


def test_a_killed_tab_leaves_what_it_had_to_the_next(context: BrowserContext, stocked: Path) -> None:
    """Two connections hang, each at another byte, and the tab's process dies."""
    mischief = Mischief({SHARD: [None, Stall(300_000), Stall(200_000)]})
    context.unroute_all()
    with tabs.serving(stocked, mischief) as address:
        store = Store(context, address)
        name = shas(stocked)[SHARD]
        store.hear("progress")
        store.page.wait_for_function("() => heard.some(({ done }) => done > 4 * 2 ** 20)")
        for _ in range(200):
            before = store.filled(name)
            if sum(before) == PIECE + 500_000:
                break
            store.page.wait_for_timeout(50)
        assert before[0] == PIECE
        assert sorted(before[1:]) == [200_000, 300_000]
        with store.page.expect_event("crash"), contextlib.suppress(Error):
            store.page.goto("chrome://kill")  # Kills this tab's process and no other.
        mischief.asked.clear()
        second = Store(context, address)
        assert second.end()["kind"] == "stored"
        rest = [f"bytes={PIECE + before[1]}-{2 * PIECE - 1}", f"bytes={2 * PIECE + before[2]}-{BYTES - 1}"]
        assert sorted(ranges(mischief), key=str) == rest
        assert second.heard("progress")[0]["done"] >= 0
        assert second.files()[name] == BYTES


def test_a_server_that_is_gone_for_a_while_is_waited_for(context: BrowserContext, stocked: Path) -> None:
    """It ends in mid-file, refuses connections, and is there again."""
    context.unroute_all()
    with tabs.serving(stocked, Mischief({SHARD: [Stall(500_000)] * 3})) as address:
        store = Store(context, address)
        store.page.wait_for_function("() => heard.some(({ done }) => done >= 1502400)")
    store.page.wait_for_function("() => heard.some(({ pause }) => pause >= 2)")  # It was tried again, in vain.
    mischief = Mischief()
    with tabs.serving(stocked, mischief, int(address.split(":")[2].strip("/"))):
        assert store.end()["kind"] == "stored"
    rest = ["bytes=4694304-8388607", "bytes=500000-4194303", "bytes=8888608-9388607"]
    assert sorted(ranges(mischief), key=str) == rest
    assert mischief.sent[SHARD] == BYTES - 1_500_000


def test_ranges_go_through_the_service_worker(context: BrowserContext, stocked: Path) -> None:
    """A host without isolation headers, whose answers all pass through it: a broken one goes on at its byte."""
    mischief = Mischief({SHARD: [Drop(1_000_000)]}, isolated=False)
    with tabs.serving(stocked, mischief) as address:
        before = context.new_page()
        before.goto(f"{address}site.json")
        before.evaluate("navigator.serviceWorker.register('service.js').then(() => navigator.serviceWorker.ready)")
        store = Store(context, address)
        assert store.page.evaluate("navigator.serviceWorker.controller !== null")
        assert store.page.evaluate(
            "fetch('site.json').then(({ headers }) => headers.has('Cross-Origin-Opener-Policy'))"
        )
        assert store.end()["kind"] == "stored"
        assert sorted(ranges(mischief), key=str) == sorted([FIRST, "bytes=1000000-4194303", SECOND, THIRD])
        assert mischief.sent[SHARD] == BYTES
        assert store.files()[shas(stocked)[SHARD]] == BYTES


def test_two_tabs_download_once(context: BrowserContext, stocked: Path) -> None:
    mischief = Mischief({SHARD: [Stall(1_000_000)]})
    context.unroute_all()
    prefix(context, "store.js", HURRY)
    with tabs.serving(stocked, mischief) as address:
        first, second = Store(context, address), Store(context, address)
        assert first.end()["kind"] == second.end()["kind"] == "stored"
        assert mischief.sent[SHARD] == BYTES
        for name in ("plan.json", "tokenizer.json"):
            assert len(mischief.of(name)) == 1


def test_a_new_release_of_a_model_fetches_what_changed_and_removes_what_is_no_more(
    context: BrowserContext, dist: Path, tmp_path: Path
) -> None:
    site = stock(dist, tmp_path / "dist")
    mischief = Mischief()
    with tabs.serving(site, mischief) as address:
        store = Store(context, address)
        store.end()
        old = shas(site)
        folder = site / "models" / "big"
        put(
            site,
            "big",
            {
                SHARD: (folder / SHARD).read_bytes(),
                "plan.json": b"{ }" * 400,
                "tokenizer.json": (folder / "tokenizer.json").read_bytes(),
                "model.onnx": b"graph",
            },
        )
        mischief.asked.clear()
        store.page.close()
        store = Store(context, address)
        assert store.end()["kind"] == "stored"
        assert mischief.of(SHARD, "plan.json", "tokenizer.json") == [("plan.json", None)]
        assert set(store.files()) == {old[SHARD], old["tokenizer.json"], shas(site)["plan.json"]}


def test_what_an_open_tab_uses_outlives_a_new_release(context: BrowserContext, dist: Path, tmp_path: Path) -> None:
    site = stock(dist, tmp_path / "dist")
    with tabs.serving(site) as address:
        old = shas(site)
        first = Store(context, address)
        first.end()
        put(site, "big", {SHARD: b"new" * 1000, "plan.json": b"{}", "tokenizer.json": b"[]", "model.onnx": b"graph"})
        second = Store(context, address)
        assert second.end()["kind"] == "stored"
        assert {old[SHARD], shas(site)[SHARD]} <= set(second.files())
        first.page.close()
        second.page.close()
        put(site, "big", {SHARD: b"newer" * 999, "plan.json": b"{}", "tokenizer.json": b"[]", "model.onnx": b"graph"})
        third = Store(context, address)
        third.end()
        assert set(third.files()) == {shas(site)[name] for name in (SHARD, "plan.json", "tokenizer.json")}


def test_a_small_file_goes_on_at_its_byte_too(context: BrowserContext, stocked: Path) -> None:
    mischief = Mischief({"tokenizer.json": [Drop(1100), Refuse(500)]})
    with tabs.serving(stocked, mischief) as address:
        assert Store(context, address).end()["kind"] == "stored"
        assert ranges(mischief, "tokenizer.json") == [None, "bytes=1100-1399", "bytes=1100-1399"]
        assert mischief.sent["tokenizer.json"] == 1400


def test_a_host_without_ranges_that_breaks_sends_the_file_again(context: BrowserContext, stocked: Path) -> None:
    """What is here already is passed over."""
    mischief = Mischief({SHARD: [Whole(5_000_000), Whole(7_000_000), Whole()]})
    with tabs.serving(stocked, mischief) as address:
        assert Store(context, address).end()["kind"] == "stored"
        assert ranges(mischief) == [FIRST, None, None]
        assert mischief.sent[SHARD] == 12_000_000 + BYTES


def test_a_host_that_never_gets_further_is_given_up(context: BrowserContext, stocked: Path) -> None:
    mischief = Mischief({SHARD: [Whole(5_000_000)] * 30})
    with tabs.serving(stocked, mischief) as address:
        end = Store(context, address).end()
        assert (end["kind"], end["fault"]) == ("fault", "download")
        assert f"stopped at 5000000 of {BYTES} bytes" in end["detail"]
        assert len(ranges(mischief)) == 9
