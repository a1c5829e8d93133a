"""More than 4,096 tokens of context on WebGPU, in software: one layer, because attention is what takes the time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Playwright
from transformers import AutoConfig, AutoModelForCausalLM

import gpu_page
import tabs
import tiny_checkpoint
import tiny_exports
from exporter.export import export
from exporter.native import NativeSession
from gpu_page import SHORT_CHUNK

CONTEXT = 4224
TOKENS = 4112
POSITIONS = 4
DECODED = 6


def long_model(home: Path) -> Path:
    """The export of a llama of one layer, with CONTEXT tokens of context."""
    folder = tiny_checkpoint.save("llama", home / "long")
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "max_position_embeddings": CONTEXT, "rope_theta": 1e6}
    torch.manual_seed(0)
    config = AutoConfig.for_model(**tiny_checkpoint.configs()["llama"] | sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    made = export(str(folder), home / "models", home / "cache", context=CONTEXT, quant="rtn")
    tiny_exports.compute_exactly(made)
    return made


@pytest.mark.page
def test_a_prompt_of_more_than_4096_tokens(playwright: Playwright, dist: Path, tmp_path: Path) -> None:
    """Prefilled in chunks and decoded on: native's logits and tokens, and no buffer is made for it."""
    export_folder = long_model(tmp_path)
    ids = np.random.default_rng(0).integers(3, tiny_checkpoint.VOCABULARY, TOKENS).tolist()
    native = NativeSession.open(export_folder, graph="webgpu")
    rows = []
    for start in range(0, TOKENS, 257):
        part = ids[start : start + 257]
        rows = list(native.logits(part, min(POSITIONS, len(part))))
    wanted = []
    while len(wanted) < DECODED:
        wanted.append(int(rows[-1].argmax()))
        rows.append(native.logits(wanted[-1:])[0])

    home = gpu_page.site(tmp_path / "site", dist, {"long": export_folder})
    browser = tabs.launch(playwright, gpu=True)
    chunks = [{"ids": ids[start : start + SHORT_CHUNK]} for start in range(0, TOKENS, SHORT_CHUNK)]
    with gpu_page.opened(browser, home) as page:
        chunks[-1]["positions"] = POSITIONS
        *_, prefilled, decoded = page.answers("long", "webgpu", [*chunks, {"greedy": DECODED}])
    browser.close()
    assert decoded["chosen"] == wanted
    found = np.array(prefilled["ids"]).reshape(POSITIONS, -1)
    known = np.take_along_axis(np.array(rows[:POSITIONS]), found, 1)
    np.testing.assert_allclose(np.array(prefilled["logits"]).reshape(known.shape), known, atol=2e-4)
    np.testing.assert_allclose(decoded["logits"], rows[-1][decoded["ids"]], atol=2e-4)
    assert decoded["counts"]["buffers"] == 0
