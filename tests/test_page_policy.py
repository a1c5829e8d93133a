"""The content security policy: what page and workers are forbidden, and that they run within it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import serve
import tabs
from tabs import Mischief, Tab
from test_page_offline import wait_for_releases

pytestmark = pytest.mark.page

ROOT = Path(__file__).resolve().parent.parent
GREEDY = {"temperature": 0, "max_tokens": 8}
OUTSIDE = "fetch('http://outside.test/x').then(() => 'answered', () => 'refused')"


def in_index(site: Path) -> str:
    """The policy of the page in ``site``."""
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', (site / "index.html").read_text())
    assert found
    return found.group(1)


def test_every_copy_of_the_policy_is_the_page_s(dist: Path) -> None:
    policy = in_index(ROOT / "web")
    assert in_index(dist) == policy
    assert policy == serve.POLICY
    service = re.search(r"const POLICY = \[(.*?)\];", (ROOT / "web" / "service.js").read_text(), re.DOTALL)
    assert service
    assert "; ".join(re.findall(r'"(.*)"', service.group(1))) == policy


@pytest.mark.parametrize("visit", ["first", "kept", "without headers"])
def test_no_worker_asks_another_origin(chromium: Browser, tiny_site: Path, visit: str) -> None:
    """The server is the browser's proxy and hears whom it asks. With its headers, with those that the service worker
    keeps, and with those that it adds."""
    mischief = Mischief(isolated=visit == "first")
    with tabs.serving(tiny_site, mischief) as address:
        context = chromium.new_context(proxy={"server": address, "bypass": "<-loopback>"})
        tab = Tab(context.new_page(), address)
        tab.open("?model=tiny&runtime=cpu", settings=GREEDY)
        if visit == "kept":
            wait_for_releases(tab, 1)
            tab.page.reload()
            tab.ready()
        workers = tab.page.workers  # Helper threads sleep inside WebAssembly and answer nobody.
        store = next(worker for worker in workers if worker.url.endswith("/store.js"))
        engine = next(worker for worker in workers if worker.url.startswith("blob:"))
        asking: dict[str, Callable[[str], object]] = {
            "page": tab.page.evaluate,
            "store": store.evaluate,
            "engine": engine.evaluate,
        }
        for name, evaluate in asking.items():
            assert evaluate(OUTSIDE) == "refused", name
            assert [line for line in mischief.log if "outside.test" in line] == [], name
        context.close()


@pytest.mark.parametrize("runtime", ["cpu", "wasm"])
def test_a_session_stays_within_the_policy(
    chromium: Browser, tiny_site: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a page or a worker does against it, the browser reports to the server."""
    monkeypatch.setattr(serve, "POLICY", f"{serve.POLICY}; report-uri /against-the-policy")
    mischief = Mischief()
    with tabs.serving(tiny_site, mischief) as address:
        tab = Tab(chromium.new_page(), address)
        tab.page.add_init_script("addEventListener('securitypolicyviolation', (e) => console.error(e.blockedURI))")
        tab.open(f"?model=tiny&runtime={runtime}", settings=GREEDY)
        assert tab.ask("Hello")["ids"]
        assert tab.errors == []
        assert [line for line in mischief.log if "against" in line] == []
        store = next(worker for worker in tab.page.workers if worker.url.endswith("/store.js"))
        assert store.evaluate(OUTSIDE) == "refused"
        for _ in range(100):
            if "POST /against-the-policy" in mischief.log:
                break
            tab.page.wait_for_timeout(100)
        assert "POST /against-the-policy" in mischief.log, "the test would have heard"
        tab.page.close()
