"""SmolLM2 itself on WebGPU, in software, which computes a token in half a minute: four tokens, in three steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Playwright

import gpu_page
import real_model
import tabs
import tiny_exports
from exporter.native import NativeSession, RustTokenizer
from exporter.verify import device_check

TOKENS = 4


@pytest.mark.page
@pytest.mark.model
def test_the_real_model_says_on_webgpu_what_it_says_natively(
    playwright: Playwright, dist: Path, tmp_path: Path
) -> None:
    """Greedy tokens by one prefill: where each is the likeliest after the prompt and native's tokens before it, all of
    them are the same. The second one is decoded as well. (Opening checks a prefill and a decode too.)
    """
    real_model.manifest()
    exact = shutil.copytree(real_model.FOLDER, tmp_path / "exact")
    tiny_exports.compute_exactly(exact)
    ids = RustTokenizer.open(exact).encode("The capital of France is")
    session = NativeSession.open(exact, context=64, graph="webgpu")
    rows = [session.logits(ids)[0]]
    while len(rows) < TOKENS:
        rows.append(session.logits([int(rows[-1].argmax())])[0])
    wanted = [int(row.argmax()) for row in rows]
    check = device_check(ids, rows[0])

    home = gpu_page.site(tmp_path / "site", dist, {"real": exact})
    browser = tabs.launch(playwright, gpu=True)
    with gpu_page.opened(browser, home) as page:
        prefilled, decoded = page.js(
            """const session = await open("/models/real", "webgpu", { context: 64, chunk: 24 }, { check });
            try { return await run(session, steps); } finally { await session.close(); }""",
            check=vars(check),
            steps=[
                {"ids": [*ids, *wanted[:-1]], "positions": TOKENS},
                {"ids": wanted[:1], "rewind": len(ids)},
            ],
        )
    browser.close()
    found = np.array(prefilled["ids"]).reshape(TOKENS, -1)
    assert found[:, 0].tolist() == wanted
    assert decoded["ids"][0] == wanted[1]
    for answer, expected in ((prefilled, rows), (decoded, rows[1:2])):
        known = np.take_along_axis(np.array(expected), np.array(answer["ids"]).reshape(len(expected), -1), 1)
        np.testing.assert_allclose(np.array(answer["logits"]).reshape(known.shape), known, atol=2e-3)
    assert decoded["counts"]["buffers"] == 0
    assert decoded["counts"]["mapped"] == 64 * (8 + 4)
