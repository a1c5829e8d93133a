"""Screenshots of the page as strangers meet it, with SmolLM2: python tests/shoot.py [NAME…].

Writes docs/screens/NAME-WIDTH.png for loading, chat, error and attract, at 1280 and 390 pixels, from dist/.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Route, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("", "web", "build", "tests")]

import dress  # noqa: E402
import tabs  # noqa: E402
from kiosk_tab import dressed  # noqa: E402
from tabs import Tab  # noqa: E402

SCREENS = ROOT / "docs" / "screens"
SIZES = {1280: 800, 390: 820}
LANGUAGES = {"en", "de"}
GREEDY = {"temperature": 0, "max_tokens": 160}


def loading(tab: Tab) -> None:
    """A first visit, half-way through its download."""
    asked = 0

    def hold(route: Route) -> None:
        nonlocal asked
        asked += 1
        if asked <= 3:
            route.continue_()

    tab.page.context.route("**/weights-*", hold)
    tab.open(wait=False)
    tab.page.wait_for_function("() => /\\d MB (of|von)/.test(document.getElementById('status-text').textContent)")
    tab.page.wait_for_timeout(3000)


def chat(tab: Tab) -> None:
    """Two questions and their answers."""
    tab.open(settings=GREEDY)
    tab.ask("What is the capital of France?")
    tab.ask("List three ways to save water.")


def error(tab: Tab) -> None:
    """A connection that ends early."""
    tab.page.context.route("**/weights-*", lambda route: route.fulfill(body=b"no weights"))
    tab.open(wait=False)
    tab.page.locator("#alert").wait_for(timeout=tabs.LOADED_MS)
    tab.page.click("#alert summary")


def attract(tab: Tab) -> None:
    """A kiosk that waits for its next visitor."""
    tab.open()
    tab.page.locator("#attract:not([hidden])").wait_for()


SHOTS: dict[str, Callable[[Tab], None]] = {"loading": loading, "chat": chat, "error": error, "attract": attract}


def shoot(browser: Browser, name: str, width: int, site: Path) -> None:
    """Write ``name``-``width``.png."""
    with tabs.serving(site) as address:
        context = browser.new_context(viewport={"width": width, "height": SIZES[width]}, service_workers="block")
        page = context.new_page()
        SHOTS[name](Tab(page, address))
        path = SCREENS / f"{name}-{width}.png"
        page.screenshot(path=path)
        context.close()
        print(path, path.stat().st_size, flush=True)


def main() -> None:
    """The command ``python tests/shoot.py``."""
    SCREENS.mkdir(exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        kiosk = dressed(tabs.DIST, Path(folder) / "kiosk", dress.Kiosk.read(ROOT / "docs" / "kiosk.toml", LANGUAGES))
        browser = tabs.launch(playwright)
        for name in sys.argv[1:] or SHOTS:
            for width in SIZES:
                shoot(browser, name, width, kiosk if name == "attract" else tabs.DIST)
        browser.close()


if __name__ == "__main__":
    main()
