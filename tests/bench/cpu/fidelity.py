"""How faithful the browser's kernels are: python tests/bench/cpu/fidelity.py [--model gemma-3-270m].

Every runtime reads TEXT, prose of our own that nothing in this repository was tuned on, from an empty KV cache, and at
each of its positions says the likeliest next token and the cross-entropy of the one that comes. They are compared with
the checkpoint in eager float32 torch. Ours runs in Chromium; onnxruntime and, of the default model, transformers.js'
int8 run natively. A base model's text begins with BOS, as in the page. Writes results/fidelity.json (of another model
fidelity-NAME.json) and exits 1 where ours misses what issue 3 asks for: 99 % of the likeliest tokens, perplexity within
0.5 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from playwright.sync_api import sync_playwright
from q8 import FOLDER
from report import RESULTS, named, rounded
from runtimes import MODEL, ROOT, native_session, ours, serve
from tokenizers import Tokenizer

from exporter.checkpoint import open_checkpoint
from exporter.skeleton import whole_model
from handbill.chat import is_base
from handbill.manifest import NAME, Manifest

TEXT = Path(__file__).with_name("heldout.txt")
CHUNK = 256
"""Tokens that torch and native runtimes read at once: all logits of the text would take gigabytes."""
LEAST_AGREEMENT, MOST_RATIO = 0.99, 1.005

Scores = tuple[list[int], list[float]]
"""The likeliest next token at each position, and the cross-entropy (nats) of what followed it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL.name, help="an exported model whose GGUF a package holds")
    model = MODEL.with_name(parser.parse_args().model)
    ids = text_ids(model)
    assert len(ids) > 2000
    exact = source(model, ids)
    found = {"native onnxruntime": native(native_session(model), ids)}
    if model == MODEL and (FOLDER / "onnx").is_dir():
        found["transformers.js q8"] = native(
            onnxruntime.InferenceSession(FOLDER / "onnx" / "model_quantized.onnx"), ids
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        ask, _ = ours(browser.new_page(), serve(model), {"threads": 1}, model)
        answer = ask({"score": ids})
        found["ours"] = answer["top"], answer["loss"]
        version = browser.version
        browser.close()
    result: dict[str, Any] = {"chromium": version, "positions": len(ids), "perplexity": math.exp(np.mean(exact[1]))}
    result["runtimes"] = {
        name: compare(scores, exact) | {"bytes": model_bytes(model, name)} for name, scores in found.items()
    }
    (RESULTS / f"{named('fidelity', model.name)}.json").write_text(
        json.dumps(rounded(result), indent=1) + "\n", "utf-8"
    )
    print(json.dumps(rounded(result), indent=1))
    mine = result["runtimes"]["ours"]
    if mine["likeliest"] < LEAST_AGREEMENT or mine["ratio"] > MOST_RATIO:
        sys.exit("The kernels are less faithful than issue 3 asks for.")


def text_ids(model: Path) -> list[int]:
    """TEXT as ``model`` reads it; a base model behind BOS, which its page puts there."""
    manifest = Manifest.from_json((model / NAME).read_text("utf-8"))
    begin = manifest.bos_token if is_base(manifest) else ""
    tokenizer = Tokenizer.from_file(str(model / manifest.tokenizer))
    return tokenizer.encode(begin + TEXT.read_text("utf-8"), add_special_tokens=False).ids


def model_bytes(model: Path, name: str) -> int:
    """Bytes of the weights that the runtime reads."""
    files = (FOLDER / "onnx").glob("*.onnx") if name.startswith("transformers.js") else model.glob("weights-*.bin")
    return sum(path.stat().st_size for path in files)


def compare(scores: Scores, exact: Scores) -> dict[str, float]:
    """Share of positions with the same likeliest token, and perplexity over the source's."""
    same = np.mean(np.array(scores[0]) == np.array(exact[0]))
    return {"likeliest": float(same), "ratio": math.exp(np.mean(scores[1]) - np.mean(exact[1]))}


def score(logits: npt.NDArray[np.float32], following: list[int]) -> Scores:
    """``logits`` [n, vocabulary] and the tokens that follow its first ``len(following)`` positions."""
    wide = logits.astype(np.float64)
    most = wide.max(axis=1)
    total = np.log(np.exp(wide - most[:, None]).sum(axis=1)) + most
    count = len(following)
    losses = total[:count] - wide[np.arange(count), following]
    return logits.argmax(axis=1).tolist(), losses.tolist()


def source(model: Path, ids: list[int]) -> Scores:
    """The checkpoint itself, dequantized, in float32, CHUNK positions after the other."""
    checkpoint = open_checkpoint(model.name, ROOT / ".cache")
    whole = whole_model(checkpoint.config, checkpoint.weights).float().eval()
    past, tops, losses = None, [], []
    with torch.no_grad():
        for first in range(0, len(ids), CHUNK):
            said = whole(torch.tensor([ids[first : first + CHUNK]]), past_key_values=past, use_cache=True)
            top, loss = score(said.logits[0].numpy(), ids[first + 1 : first + CHUNK + 1])
            past, tops, losses = said.past_key_values, tops + top, losses + loss
    return tops, losses


def native(session: onnxruntime.InferenceSession, ids: list[int]) -> Scores:
    """A native session with the inputs of our graph or of a plain Optimum export."""
    inputs = {value.name: value for value in session.get_inputs()}
    past = {
        name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for name, value in inputs.items()
        if name.startswith("past")
    }
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    tops, losses = [], []
    for first in range(0, len(ids), CHUNK):
        part = ids[first : first + CHUNK]
        end = first + len(part)
        feeds: dict[str, Any] = {
            "input_ids": np.array([part]),
            "positions": np.arange(len(part)),
            "position_ids": np.arange(first, end)[None],
            "attention_mask": np.ones((1, end), np.int64),
            "seqlens_k": np.array([end - 1], np.int32),
            "total_sequence_length": np.array(end, np.int32),
        }
        logits, *present = session.run(outputs, {name: feed for name, feed in feeds.items() if name in inputs} | past)
        past = dict(zip(past, present, strict=True))
        top, loss = score(logits[0], ids[first + 1 : end + 1])
        tops += top
        losses += loss
    return tops, losses


if __name__ == "__main__":
    main()
