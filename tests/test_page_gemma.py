"""gemma-3-270m in headless Chromium, where it has been exported: a base model that completes what one writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import page_models
import real_model
from tabs import Tab, serving
from test_golden import GOLDEN, TOKENS

NAME = "gemma-3-270m"

pytestmark = [pytest.mark.page, pytest.mark.model]


def test_the_page_completes_a_text_as_torch_does(chromium: Browser, dist: Path, tmp_path: Path) -> None:
    """Our kernels are as good as float32, so greedy completions are eager torch's on the dequantized weights."""
    manifest = real_model.manifest(NAME)
    home = page_models.site(dist, tmp_path / "dist", [real_model.MODELS / NAME])
    with serving(home) as address:
        tab = Tab(chromium.new_page(viewport={"width": 1280, "height": 800}), address)
        tab.open(settings={"temperature": 0, "max_tokens": TOKENS})
        assert tab.ready().startswith("processor, ")
        assert manifest.title in tab.page.inner_text("body")
        for turn in json.loads((GOLDEN / f"{NAME}.json").read_text("utf-8")):
            if tab.page.locator(".answer").count():
                tab.page.click("#new-chat")  # A base model goes on with all that stands there.
            answer = tab.ask(turn["question"])
            assert answer["ids"] == turn["answer"], turn["question"]
        tab.shoot(f"{NAME}-1280")
        tab.page.set_viewport_size({"width": 390, "height": 844})
        tab.shoot(f"{NAME}-390")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.outside == []
        assert tab.errors == []
        tab.page.close()
