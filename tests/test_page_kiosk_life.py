"""The page as a kiosk: it comes back to life by itself, whatever has died."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, Route

import altered_site
import tabs
from kiosk_tab import kiosk, lone_kiosk, mark, pass_time, pretend, wait_for_another
from lone_page import READY, fault, say
from test_page_chip import FAIL_AT, FAILING, SESSION
from test_page_kiosk import SECRET

pytestmark = pytest.mark.page


def test_a_lost_device_brings_the_attract_screen_back(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    with kiosk(chromium, tiny_site, tmp_path) as tab:
        page = tab.page
        page.click("#begin")
        tab.ask(SECRET)
        page.evaluate(
            """() => new BroadcastChannel(handbill.channel).postMessage(JSON.stringify(
                {kind: "fault", turn: 0, fault: "device", detail: "The device was lost."}))"""
        )
        page.locator("#alert").wait_for()
        page.locator("#attract:not([hidden])").wait_for(timeout=60_000)
        tab.ready()
        assert page.is_hidden("#alert")
        assert SECRET not in page.content()
        page.click("#begin")
        assert tab.ask("Why?")["reused"] == 0


def test_a_dead_worker_is_noticed_though_somebody_presses_stop(
    chromium: Browser, tiny_site: Path, tmp_path: Path
) -> None:
    with kiosk(chromium, tiny_site, tmp_path, answer_seconds=600, controls=["settings"]) as tab:
        page = tab.page
        page.click("#begin")
        mark(tab)
        for worker in page.workers:
            if "cpu-pool" not in worker.url:  # The kernels' helpers sleep and hear nothing.
                worker.evaluate("() => { setTimeout(() => self.close(), 100); }")  # Not before it has answered.
        page.fill("#message", SECRET)
        page.press("#message", "Enter")
        page.evaluate(
            """() => {
                const channel = new BroadcastChannel(handbill.channel);
                const kept = {kind: "kept", items: [], used: 0, quota: 0, persistent: false, refused: ""};
                setInterval(() => {
                    document.querySelector("#send.stop")?.click();
                    document.getElementById("open-settings").click();
                    document.getElementById("settings").close();
                    channel.postMessage(JSON.stringify(kept));
                }, 1000);
            }"""
        )
        wait_for_another(tab)
        tab.ready()
        assert page.is_visible("#attract")
        assert SECRET not in page.content()
        page.click("#begin")
        assert tab.ask("Why?")["ids"]


DEAF = """
const post = BroadcastChannel.prototype.postMessage;
BroadcastChannel.prototype.postMessage = function (text) {
    if (self.deaf && ["ask", "stop"].includes(JSON.parse(text).kind)) return;
    post.call(this, text);
};
"""
"""With ``deaf`` set, the engine hears no question and no Stop, as if its device hung; it still answers pings."""


def test_an_answer_that_neither_comes_nor_stops_brings_the_page_anew(
    chromium: Browser, tiny_site: Path, tmp_path: Path
) -> None:
    with kiosk(chromium, tiny_site, tmp_path, DEAF, answer_seconds=1) as tab:
        page = tab.page
        page.click("#begin")
        mark(tab)
        page.evaluate("self.deaf = true")
        page.fill("#message", SECRET)
        page.press("#message", "Enter")
        wait_for_another(tab)
        tab.ready()
        assert page.is_visible("#attract")
        page.click("#begin")
        assert tab.ask("Why?")["ids"]


def test_a_file_found_damaged_does_not_end_the_exhibit(chromium: Browser, tiny_site: Path, tmp_path: Path) -> None:
    """Its visitor may finish, and needs no button; the page then comes anew, which fetches the file."""
    with lone_kiosk(chromium, tiny_site, tmp_path) as tab:
        page = tab.page
        page.click("#begin")
        mark(tab)
        page.evaluate(
            """() => {
                self.alarms = 0;
                const note = () => (alarms += !document.getElementById("alert").hidden);
                new MutationObserver(note).observe(document.getElementById("alert"), {attributes: true});
            }"""
        )
        fault(tab, "damaged", "weights-00.bin.")
        page.wait_for_function("() => document.getElementById('alert-text').textContent.length > 9")
        page.wait_for_timeout(200)
        assert page.is_hidden("#alert") and page.evaluate("alarms") == 0
        pass_time(tab, 600)
        wait_for_another(tab)
        pretend(tab)
        assert page.is_visible("#attract")
        # While nobody is here, it comes anew at once.
        mark(tab)
        fault(tab, "damaged", "weights-00.bin.")
        wait_for_another(tab)
        assert page.is_hidden("#alert")


def test_it_waits_for_the_server_and_lets_nobody_begin_what_it_would_interrupt(
    chromium: Browser, tiny_site: Path, tmp_path: Path
) -> None:
    with lone_kiosk(chromium, tiny_site, tmp_path, idle_seconds=60) as tab:
        page = tab.page
        asked: list[Route] = []
        address = page.url

        def hold(route: Route) -> None:
            asked.append(route)

        page.click("#begin")
        page.fill("#message", SECRET)
        mark(tab)
        page.evaluate("AbortSignal.timeout = () => new AbortController().signal")  # The server is as slow as the test.
        page.context.route(address, hold)
        pass_time(tab, 600)
        page.locator("#attract:not([hidden])").wait_for()
        while not asked:
            page.wait_for_timeout(100)
        assert page.evaluate("document.getElementById('attract').inert")
        page.mouse.click(200, 200)
        assert page.is_visible("#attract")
        assert page.input_value("#message") == ""
        asked[0].abort("connectionrefused")
        page.wait_for_function("() => !document.getElementById('attract').inert")
        assert page.evaluate("document.activeElement.id") == "begin"
        assert page.evaluate("document.body.dataset.old") == "yes"
        # It tries again after a while, not in every second, and still does once it has failed.
        page.wait_for_timeout(2500)
        assert len(asked) == 1
        for count in (2, 3):
            pass_time(tab, 61)
            while len(asked) < count:
                page.wait_for_timeout(100)
            assert page.evaluate("document.getElementById('attract').inert")
            asked[-1].abort("connectionrefused")
            page.wait_for_function("() => !document.getElementById('attract').inert")
        assert page.url == address and page.evaluate("document.body.dataset.old") == "yes"
        # Who comes meanwhile is not interrupted.
        page.click("#begin")
        page.context.unroute(address, hold)
        page.fill("#message", "Hello")
        page.wait_for_timeout(2500)
        assert page.input_value("#message") == "Hello"
        pass_time(tab, 600)
        wait_for_another(tab)


def test_a_revival_never_leaves_the_page_for_a_server_that_is_gone(
    chromium: Browser, tiny_site: Path, tmp_path: Path
) -> None:
    with lone_kiosk(chromium, tiny_site, tmp_path) as tab:
        page = tab.page
        tried: list[str] = []

        def refuse(route: Route) -> None:
            tried.append(route.request.resource_type)
            route.abort("connectionrefused")

        mark(tab)
        page.context.route(page.url, refuse)
        fault(tab, "device", "The device was lost.")
        while len(tried) < 2:
            page.wait_for_timeout(200)
        assert page.evaluate("document.body.dataset.old") == "yes"
        assert set(tried) == {"fetch"}
        page.context.unroute(page.url, refuse)
        wait_for_another(tab)
        assert page.is_visible("#attract") and page.is_hidden("#alert")


def test_a_visitor_who_leaves_while_the_model_opens_does_not_begin_it_again(
    chromium: Browser, tiny_site: Path, tmp_path: Path
) -> None:
    with lone_kiosk(chromium, tiny_site, tmp_path, ready=False) as tab:
        page = tab.page
        page.click("#begin")
        page.fill("#message", SECRET)
        page.press("#message", "Enter")
        mark(tab)
        pass_time(tab, 600)
        page.locator("#attract:not([hidden])").wait_for()
        assert SECRET not in page.content()
        page.wait_for_timeout(2500)
        assert page.evaluate("document.body.dataset.old") == "yes"
        say(tab, READY)
        wait_for_another(tab)


def test_a_graphics_chip_that_fails_for_good_brings_the_attract_screen_back(
    playwright: Playwright, tiny_site: Path, tmp_path: Path
) -> None:
    site = altered_site.copy(tiny_site, tmp_path / "site")
    altered_site.change(site, SESSION, lambda text: FAILING + text)
    gpu = tabs.launch(playwright, gpu=True)
    with kiosk(gpu, site, tmp_path, query="?runtime=webgpu") as tab:  # Asked for by name, no other takes over.
        assert "WebGPU" in tab.ready()
        tab.page.click("#begin")
        mark(tab)
        tab.page.evaluate(FAIL_AT, ["unplug", 4])
        tab.page.fill("#message", SECRET)
        tab.page.press("#message", "Enter")
        wait_for_another(tab)
        assert "WebGPU" in tab.ready()
        assert tab.page.is_visible("#attract") and tab.page.is_hidden("#alert")
        assert SECRET not in tab.page.content()
        tab.page.click("#begin")
        assert tab.ask("Why?")["ids"]
    gpu.close()
