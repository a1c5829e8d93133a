"""What the bench measures: each runtime is a function (ids, stops, tokens) → one {at, seconds, milliseconds, output}
per stop, as worker.js describes them. Peers take a single stop, the whole prompt.
"""

from __future__ import annotations

import functools
import http.server
import json
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from playwright.sync_api import Browser, Page
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[3]
PEERS = ROOT / "tests" / "bench" / "peers" / "node_modules"
sys.path[:0] = [str(ROOT), str(ROOT / "build"), str(ROOT / "web")]

import bound  # noqa: E402
import q8  # noqa: E402

import kernels  # noqa: E402
from exporter import fetch, graph, recipes  # noqa: E402

MODEL = ROOT / "models" / q8.MODEL
"""The model that every peer runs. Others have no int8 of transformers.js here."""
Point = dict[str, Any]
Run = Callable[[list[int], list[int], int], list[Point]]


class Handler(http.server.SimpleHTTPRequestHandler):
    """web/, the kernels, the model and the peers under one address, isolated so that threads are allowed."""

    folders: dict[str, Path]

    def translate_path(self, path: str) -> str:
        first, _, rest = path.split("?")[0].lstrip("/").partition("/")
        if first == "gguf":
            return str(self.folders[first])
        return str(self.folders[first] / rest if first in self.folders else ROOT / "web" / first / rest)

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def serve(model: Path = MODEL) -> str:
    """Serve everything that the browser needs for ``model``; the address, without a slash at its end."""
    package = recipes.find(model.name).package
    assert package, f"{model.name} has no GGUF on the package registry"
    built = ROOT / ".cache" / "kernels-site" / "kernels"
    kernels.build(built, ROOT / ".cache" / "kernels")
    bound.build(ROOT / ".cache" / "bench" / "peak")
    Handler.folders = {
        "peak": ROOT / ".cache" / "bench" / "peak",
        "model": model,
        "bench": Path(__file__).parent,
        "kernels": built,
        "peers": PEERS,
        "q8": q8.FOLDER.parent,
        "gguf": fetch.from_package(package, ROOT / ".cache")[0],
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def native_session(model: Path = MODEL) -> onnxruntime.InferenceSession:
    """Native onnxruntime on one thread at accuracy_level 4 (int8 activations).

    On the graph that it runs fastest: float zero points, in the other one, have no fast path there.
    """
    manifest = json.loads((model / "manifest.json").read_text())
    proto = graph.load(model / manifest["graphs"]["webgpu"])
    graph.set_accuracy_level(proto, 4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    with tempfile.NamedTemporaryFile(dir=model, suffix=".onnx") as file:
        onnx.save(proto, file.name)
        return onnxruntime.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])


def native(model: Path = MODEL) -> Run:
    """``native_session`` as a runtime, in this process."""
    session = native_session(model)
    shapes = {value.name: value.shape for value in session.get_inputs() if value.name.startswith("past")}
    empty = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}
    outputs = ["topk_ids", *(name.replace("past_key_values", "present") for name in shapes)]

    def step(ids: list[int], past: dict[str, Any], done: int) -> tuple[int, dict[str, Any]]:
        total = done + len(ids)
        feeds = {"input_ids": np.array([ids]), "positions": np.array([len(ids) - 1])}
        feeds |= {"seqlens_k": np.array([total - 1], np.int32), "total_sequence_length": np.array(total, np.int32)}
        top, *present = session.run(outputs, feeds | past)
        return int(top[0, 0, 0]), dict(zip(shapes, present, strict=True))

    def decode(token: int, past: dict[str, Any], at: int, tokens: int) -> Point:
        output, times = [token], []
        while len(output) < tokens:
            before = time.perf_counter()
            token, past = step([token], past, at + len(output) - 1)
            times.append((time.perf_counter() - before) * 1000)
            output.append(token)
        return {"milliseconds": statistics.median(times or [0.0]), "output": output}

    def run(ids: list[int], stops: list[int], tokens: int) -> list[Point]:
        done, past, points = 0, empty, []
        for at in stops:
            started = time.perf_counter()
            token, past = step(ids[done:at], past, done)
            seconds = time.perf_counter() - started
            points.append({"at": at, "seconds": seconds, **decode(token, past, at, tokens)})
            done = at
        return points

    return run


def ours(
    page: Page, address: str, choice: dict[str, Any], model: Path = MODEL
) -> tuple[Callable[[dict[str, Any]], Any], dict[str, Any]]:
    """worker.js in ``page``: a function that sends it a message and waits; what it says of the session comes second."""
    page.goto(f"{address}/bench/blank.html")
    page.evaluate("() => { self.worker = new Worker('/bench/worker.js', {type: 'module'}) }")

    def ask(message: dict[str, Any]) -> Any:
        answer = page.evaluate(
            """(message) => new Promise((resolve) => {
                 self.worker.onmessage = ({data}) => resolve(data);
                 self.worker.onerror = (event) => resolve({fault: "worker", detail: event.message});
                 self.worker.postMessage(message);
               })""",
            message,
        )
        if "fault" in answer:
            raise SystemExit(f"{answer['fault']}: {answer['detail']}")
        return answer

    manifest = json.loads((model / "manifest.json").read_text())
    return ask, ask({"open": {"manifest": manifest, "base": f"{address}/", "choice": choice}})


def timed(page: Page, address: str, choice: dict[str, Any], model: Path) -> tuple[Run, dict[str, Any]]:
    """``ours`` as a runtime."""
    ask, opened = ours(page, address, choice, model)
    return lambda ids, stops, tokens: ask({"prompt": ids, "stops": stops, "tokens": tokens}), opened


def peer(page: Page, address: str, script: str, model: Path) -> tuple[Run, dict[str, Any]]:
    """A peer's ``script`` (its begin and run) in ``page``."""
    page.goto(f"{address}/bench/blank.html")
    page.evaluate("async (script) => { self.peer = await import(`/bench/${script}`) }", script)
    opened: dict[str, Any] = page.evaluate("() => self.peer.begin()")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def run(ids: list[int], stops: list[int], tokens: int) -> list[Point]:
        (at,) = stops
        message = {"ids": ids[:at], "text": tokenizer.decode(ids[:at]), "at": at, "tokens": tokens}
        points: list[Point] = page.evaluate("(message) => self.peer.run(message)", message)
        return points

    return run, opened


def file_type(model: Path) -> str:
    """What the GGUF behind ``model`` says of itself in its name, such as Q4_1."""
    package = recipes.find(model.name).package
    found = package and re.search(r"q\d_\w+", Path(package.member).stem, re.IGNORECASE)
    assert found, f"{model.name} has no GGUF on the package registry"
    return found[0].upper()


def in_browser(browser: Browser, address: str, model: Path) -> dict[str, tuple[Run, dict[str, Any]]]:
    """Every runtime of ``model`` in ``browser``, opened, by name."""
    choices = {"ours": {"threads": 1}, "ours, two threads": {"threads": 2}}
    found = {name: timed(browser.new_page(), address, choice, model) for name, choice in choices.items()}
    scripts = {f"wllama {file_type(model)}": "wllama.js"}
    if model == MODEL:
        scripts = {"transformers.js q8": "transformers.js"} | scripts
    return found | {name: peer(browser.new_page(), address, script, model) for name, script in scripts.items()}
