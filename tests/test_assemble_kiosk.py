"""build/assemble.py --kiosk --single-file through the command, and what it makes, in a browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import altered_site
import assemble
import check
import dress
import page_models
import tabs
from kiosk_tab import SKIP, mark, pass_time, wait_for_another
from tabs import Tab

pytestmark = pytest.mark.page

ROOT = assemble.ROOT
KIOSK = """
title = "Ask the box"
greeting = "It knows nothing."
questions = ["Why?"]
theme = "dark"
language = "de"
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This checkout with a tiny model and a dist/ of its own, which the command takes for its own."""
    root = tmp_path / "checkout"
    (root / ".cache").mkdir(parents=True)
    for name in ("web", "build", "LICENSE", ".cache/vendor", ".cache/kernels", ".cache/snapshot", ".cache/compressed"):
        (root / name).symlink_to(ROOT / name)
    (root / "models").mkdir()
    altered_site.copy(page_models.exported("tiny"), root / "models" / "tiny")
    monkeypatch.setattr(assemble, "ROOT", root)
    (root / "kiosk.toml").write_text(KIOSK, encoding="utf-8")
    return root


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of build/assemble.py with ``arguments``."""
    monkeypatch.setattr("sys.argv", ["assemble.py", *arguments])
    return assemble.main()


def visit(tab: Tab) -> None:
    """Touch the slip, be answered, leave, and be forgotten."""
    page = tab.page
    assert page.inner_text("#attract-title") == "Ask the box"
    assert page.inner_text("#begin") == "Zum Beginnen berühren"
    page.click("#attract-questions button")
    tab.answer(0)
    mark(tab)
    pass_time(tab, 600)
    wait_for_another(tab)
    tab.ready()
    assert page.is_visible("#attract") and page.locator(".turn").count() == 0
    assert tab.errors == []


def test_a_kiosk_by_the_command_served_and_as_one_file(
    chromium: Browser, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    single = checkout / "kiosk.html"
    assert command(monkeypatch, "--kiosk", str(checkout / "kiosk.toml"), "--single-file", str(single)) == 0
    said = capsys.readouterr().out
    assert f"dressed as the kiosk of {checkout / 'kiosk.toml'}" in said
    assert said.endswith(dress.command_line("http://127.0.0.1:8000/") + "\n")
    monkeypatch.setattr("sys.argv", ["check.py", "--dir", str(checkout / "dist")])
    assert check.main() == 0

    with tabs.serving(checkout / "dist") as address:
        context = chromium.new_context()
        context.add_init_script(SKIP)
        tab = Tab(context.new_page(), address)
        tab.open()
        visit(tab)
        assert tab.outside == []
        context.close()

    shutil.rmtree(checkout / "dist")
    context = chromium.new_context(offline=True)
    context.add_init_script(SKIP)
    tab = Tab(context.new_page(), checkout.as_uri())
    tab.open("kiosk.html")
    visit(tab)
    context.close()


def test_a_kiosk_that_cannot_be_used_leaves_the_site_as_it_was(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "dist").mkdir()
    (checkout / "dist" / "index.html").write_text("before", encoding="utf-8")
    (checkout / "kiosk.toml").write_text(KIOSK + "colour = 3\n", encoding="utf-8")
    assert command(monkeypatch, "--kiosk", str(checkout / "kiosk.toml")) == 1
    assert "there is no key 'colour'" in capsys.readouterr().err
    assert [path.name for path in (checkout / "dist").iterdir()] == ["index.html"]
