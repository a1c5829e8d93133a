"""The page against servers and browsers that misbehave, on a tiny random model: one layer of truth is enough here."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, Route

import tabs
from fault_server import Corrupt
from handbill.manifest import NAME, Manifest
from lone_page import ask, lone_page, say
from tabs import Mischief, Tab

pytestmark = pytest.mark.page

GREEDY = {"temperature": 0, "max_tokens": 24}


def weights_of(dist: Path) -> str:
    """Name of the tiny model's first shard."""
    return Manifest.from_json((dist / "models" / "tiny" / NAME).read_text(encoding="utf-8")).weights[0]


def test_the_page_reacts_before_python_is_there(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_page(), address)
        held: list[Route] = []
        tab.page.context.route("**/pyodide.asm.wasm", lambda route: held.append(route))
        tab.open(wait=False)
        tab.page.wait_for_function("document.getElementById('fact-model').textContent.length > 1")
        tab.page.click("#open-settings")
        assert tab.page.is_visible("#temperature")
        tab.page.keyboard.press("Escape")
        tab.page.fill("#message", "Hello")
        tab.page.press("#message", "Enter")
        assert "Waiting for the model" in tab.page.inner_text(".answer")
        for _ in range(600):
            if held:
                break
            tab.page.wait_for_timeout(50)
        held[0].continue_()
        assert tab.answer(0)["ids"]  # What was sent early is answered once the model is there.
        assert tab.outside == []
        tab.page.close()


def test_a_shard_that_stays_corrupted_has_its_sentence(chromium: Browser, tiny_site: Path) -> None:
    shard = weights_of(tiny_site)
    with tabs.serving(tiny_site, Mischief({shard: [Corrupt()] * 9})) as address:
        tab = Tab(chromium.new_page(), address)
        tab.open(wait=False)
        tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
        assert "arrived damaged" in tab.alarm()
        assert shard in tab.alarm()
        tab.shoot("corrupted")
        tab.page.close()


def test_a_missing_shard_has_its_sentence(chromium: Browser, tiny_site: Path) -> None:
    shard = weights_of(tiny_site)
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_page(), address)
        tab.page.context.route(f"**/{shard}", lambda route: route.fulfill(status=404))
        tab.open(wait=False)
        tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
        assert "could not be downloaded" in tab.alarm()
        assert shard in tab.alarm()
        tab.page.context.unroute_all()
        tab.page.close()


def test_without_isolation_one_thread_works(chromium: Browser, tiny_site: Path) -> None:
    """A host without headers and a browser that allows no service worker."""
    with tabs.serving(tiny_site, Mischief(isolated=False)) as address:
        tab = Tab(chromium.new_page(service_workers="block"), address)
        tab.open("?runtime=wasm", settings=GREEDY)
        assert tab.page.evaluate("crossOriginIsolated") is False
        assert "one thread" in tab.ready()
        assert tab.ask("Hello")["ids"]
        tab.page.close()


def test_plain_http_in_a_local_network_runs_from_memory(chromium: Browser, tiny_site: Path) -> None:
    """There is no OPFS, no crypto.subtle, no clipboard and no isolation there."""
    with tabs.serving(tiny_site, Mischief(isolated=False)) as address:
        tab = Tab(chromium.new_page(), address.replace("127.0.0.1", "handbill.test"))
        tab.open("?runtime=wasm", settings=GREEDY)
        assert tab.page.evaluate("isSecureContext") is False
        assert "at each visit" in tab.page.inner_text("#fact-load")
        assert "keeps nothing for this page" in tab.page.inner_text("#notice")
        assert tab.ask("Hello")["ids"]
        assert tab.outside == []
        tab.page.close()


def test_a_corrupted_shard_is_noticed_in_memory_too(chromium: Browser, tiny_site: Path) -> None:
    shard = weights_of(tiny_site)
    with tabs.serving(tiny_site, Mischief({shard: [Corrupt()] * 9}, isolated=False)) as address:
        tab = Tab(chromium.new_page(), address.replace("127.0.0.1", "handbill.test"))
        tab.open(wait=False)
        tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
        assert "arrived damaged" in tab.alarm()
        tab.page.close()


def test_stop_new_chat_again_and_copy(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"])
        tab = Tab(context.new_page(), address)
        tab.open("?runtime=wasm", settings={"temperature": 0, "max_tokens": 400})
        # Stop from inside the page, when the fifth piece is there: nothing else is as quick.
        tab.page.evaluate(
            """() => {
                const channel = new BroadcastChannel(handbill.channel);
                let pieces = 0;
                channel.onmessage = ({data}) => {
                    if (JSON.parse(data).kind === "piece" && ++pieces === 5) {
                        document.getElementById("send").click();
                    }
                };
            }"""
        )
        stopped = tab.ask("Hello")
        assert stopped["reason"] == "stopped"
        assert len(stopped["ids"]) < 400

        tab.page.locator(".answer button", has_text="Copy").click()
        tab.page.locator(".answer button", has_text="Copied").wait_for()

        tab.page.locator(".answer button", has_text="Again").click()
        again = tab.answer(0)
        assert again["ids"][: len(stopped["ids"])] == stopped["ids"]
        assert again["reused"] > 0

        tab.page.click("#new-chat")
        assert tab.page.locator(".answer").count() == 0
        assert tab.page.is_visible("#bill")
        context.close()


HEAR_PREFILL = """() => {
  self.prefill = [];
  new BroadcastChannel(handbill.channel).onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.kind === "progress" && message.stage === "prefill") self.prefill.push(message);
  };
}"""
CHUNKS = {"wasm": 64, "webgpu": 24}
"""Tokens that a step reads at most: sessions/choose.js', and what sessions/webgpu.js leaves SwiftShader of 256."""


@pytest.mark.parametrize("model", ["tiny", "tiny-gguf"])
def test_webgpu_gives_the_tokens_of_wasm(
    playwright: Playwright, chromium: Browser, tiny_site: Path, model: str
) -> None:
    """tiny-gguf: WebGPU takes no float zero points, and the graph that says them by sums has to mean the same.

    The second question is read in several chunks, each of which the page hears of.
    """
    with tabs.serving(tiny_site) as address:
        answers: dict[str, list[list[int]]] = {}
        graphical = tabs.launch(playwright, gpu=True)
        for runtime, launched in (("wasm", chromium), ("webgpu", graphical)):
            tab = Tab(launched.new_page(), address)
            tab.open(f"?model={model}&runtime={runtime}", settings=GREEDY)
            assert ("WebGPU" in tab.ready()) == (runtime == "webgpu")
            first = tab.ask("Hello")
            tab.page.evaluate(HEAR_PREFILL)
            second = tab.ask("And now? " * 12)
            heard = tab.page.evaluate("self.prefill")
            sizes = {after["done"] - before["done"] for before, after in itertools.pairwise(heard)}
            assert len(heard) > 2 and max(sizes) <= CHUNKS[runtime]
            assert [heard[0]["done"], heard[-1]["done"]] == [0, heard[0]["total"]]
            # A random model's bytes are no text, so the answer itself cannot be told again in the same tokens.
            assert second["reused"] > 0
            # Again rewinds the KV cache into its middle: the rest must not be seen.
            tab.page.locator(".answer button", has_text="Again").last.click()
            again = tab.answer(1)
            answers[runtime] = [first["ids"], second["ids"], again["ids"]]
            assert again["ids"] == second["ids"]
            tab.page.close()
        graphical.close()
        assert answers["webgpu"] == answers["wasm"]


def test_a_base_model_goes_on_with_the_text(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_page(), address)
        tab.open("?model=tiny-base&runtime=wasm", settings=GREEDY)
        assert "goes on" in (tab.page.get_attribute("#message", "placeholder") or "")
        answer = tab.ask("Once upon a time")
        assert answer["ids"]
        assert answer["text"].startswith("Once upon a time")
        tab.page.click("#open-settings")
        assert tab.page.is_disabled("#system")
        tab.page.close()


def test_the_page_speaks_the_browsers_language_or_the_one_chosen(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        context = chromium.new_context(locale="de-CH")
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny&runtime=wasm", settings=GREEDY)
        assert tab.page.get_attribute("html", "lang") == "de"
        assert tab.page.inner_text("#send") == "Senden"
        assert tab.page.inner_text("#status-text").startswith("Bereit · ")
        tab.ask("Hello")
        assert "Token/s" in tab.page.inner_text(".answer .figures")

        tab.page.click("#open-settings")
        tab.page.select_option("#language-choice", "en")
        tab.page.locator("#send", has_text=re.compile("^Send$")).wait_for(state="attached")  # Not "Senden".
        assert tab.page.inner_text("#status-text").startswith("Ready · ")
        assert tab.page.inner_text("#temperature-value") == "0.00"
        assert tab.page.get_attribute(".answer [data-act=copy]", "aria-label") == "Copy this answer"
        tab.page.keyboard.press("Escape")
        assert tab.page.locator(".answer").count() == 1  # The conversation goes on.

        tab.page.reload()
        tab.page.locator("#send", has_text="Send").wait_for()
        assert tab.page.get_attribute("html", "lang") == "en"
        assert tab.errors == []
        context.close()


KEPT: dict[str, dict[str, object]] = {
    "no JSON": {},
    "[1]": {},
    '{"temperature": "hot", "system": 3, "max_tokens": null}': {},
    '{"temperature": 1e999, "max_tokens": 2.5, "top_p": true}': {"max_tokens": 2.5},
    '{"temperature": 99, "top_p": 0, "max_tokens": 0}': {"temperature": 99, "top_p": 0, "max_tokens": 0},
}
"""Choices that somebody else wrote, and what the page tells the engine of them: it knows what is no choice of its own,
the engine what is out of range (test_sampling.py)."""

HEAR = """(kinds) => {
    self.heard = {};
    const channel = new BroadcastChannel(handbill.channel);
    channel.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (kinds.includes(message.kind)) heard[message.kind] = message;
    };
}"""


def test_choices_that_somebody_else_wrote_are_left_out(chromium: Browser, tiny_site: Path) -> None:
    with lone_page(chromium, tiny_site) as tab:
        page = tab.page
        for kept, left in KEPT.items():
            page.evaluate("(kept) => localStorage.setItem('handbill settings ' + location.pathname, kept)", kept)
            page.reload()
            page.wait_for_function("() => self.handbill?.up")
            page.evaluate(HEAR, ["load", "ask"])
            say(tab, {"kind": "booted", "python": "3"})
            page.wait_for_function("() => heard.load")
            assert page.evaluate("heard.load.settings") == left, kept
            ask(
                tab,
                "Hello",
                runtime="wasm 1",
                refused=list(left),
                generation={"temperature": 0.5, "top_p": 1, "max_tokens": 9},
            )
            page.wait_for_function("() => heard.ask")
            assert page.evaluate("heard.ask.settings") == {}, kept
            assert page.input_value("#temperature") == "0.5"
        assert tab.errors == []


def test_choices_in_range_stay_beside_those_that_are_not(chromium: Browser, tiny_site: Path) -> None:
    with tabs.serving(tiny_site) as address:
        tab = Tab(chromium.new_context().new_page(), address)
        tab.open("?runtime=wasm", settings={"temperature": 99, "top_p": True, "system": 3, "max_tokens": 3})
        assert len(tab.ask("Hello")["ids"]) == 3
        assert tab.errors == []
        tab.page.context.close()
