"""Every architecture that has a recipe: the same greedy tokens on WebGPU, on WASM and natively.

The bare page refuses a graph of which WebGPU leaves a node to the processor (session.js), so none does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright

import gpu_page
import tabs
import tiny_checkpoint
import tiny_exports
from exporter.native import NativeSession
from gpu_page import PROMPT, SHORT_CHUNK, GpuPage
from handbill.manifest import NAME, Manifest

pytestmark = pytest.mark.page

TOKENS = 6
LONG = (PROMPT * 4)[: 3 * SHORT_CHUNK]
"""Prompt and answer pass the 48 tokens of the tiny models' windows, and the prompt's last chunk reads past it."""


@pytest.fixture(scope="module")
def bare(playwright: Playwright, dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuPage]:
    exports = {name: tiny_exports.exact(name) for name in tiny_checkpoint.configs()}
    home = gpu_page.site(tmp_path_factory.mktemp("gpu") / "site", dist, exports)
    browser: Browser = tabs.launch(playwright, gpu=True)
    with gpu_page.opened(browser, home) as page:
        page.js("self.first = await share('/models/llama', choice);", choice={"chunk": SHORT_CHUNK})
        yield page
    browser.close()


CHUNKS = [LONG[first : first + SHORT_CHUNK] for first in range(0, len(LONG), SHORT_CHUNK)]
"""The prompt as every runtime reads it: which of longrope's tables a key is turned by depends on it."""


def native(name: str) -> list[int]:
    """TOKENS greedy tokens after LONG by native onnxruntime."""
    session = NativeSession.open(tiny_exports.exact(name), threads=1)
    tokens = [[int(session.logits(chunk).argmax()) for chunk in CHUNKS][-1]]
    while len(tokens) < TOKENS:
        tokens.append(int(session.logits(tokens[-1:]).argmax()))
    session.close()
    return tokens


def graphs(name: str) -> dict[str, str]:
    return Manifest.from_json((tiny_exports.exact(name) / NAME).read_text("utf-8")).graphs


def test_soft_caps_and_longrope_have_a_graph_of_their_own() -> None:
    """Of all structures there are: what WebGPU has the operator for, and gets wrong or leaves to the processor."""
    rewritten = {
        name
        for name, config in tiny_checkpoint.configs().items()
        if config.get("attn_logit_softcapping") or (config.get("rope_scaling") or {}).get("type") == "longrope"
    }
    assert {"gemma2", "phi-3.5-mini", "phi-4-mini"} <= rewritten
    assert {name for name in tiny_checkpoint.configs() if len(set(graphs(name).values())) == 2} == rewritten


@pytest.mark.parametrize("name", tiny_checkpoint.configs())
def test_greedy_tokens_are_the_same_everywhere(bare: GpuPage, name: str) -> None:
    steps = [*({"ids": chunk} for chunk in CHUNKS), {"greedy": TOKENS}]
    wanted = native(name)
    for runtime in graphs(name):
        answer = bare.answers(name, runtime, steps)[-1]
        assert answer["chosen"] == wanted, runtime
        assert answer["counts"]["buffers"] == 0
        assert answer["counts"]["mapped"] == (64 * (8 + 4) if runtime == "webgpu" else 0)
