"""The CPU session in headless Chromium against native ONNX Runtime, interleaved: python tests/bench/cpu/bench.py.

Prints medians over ``--rounds`` and writes every raw figure to ``--out`` (JSON). One thread unless ``--threads`` says
otherwise; native ONNX Runtime runs the same graph at accuracy_level 4. With ``--gguf`` (the file that the model came
from) wllama takes part, after ``npm ci --ignore-scripts`` in tests/bench/peers. Each round has another prompt, so that
nobody's cache of prompts helps.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from playwright.sync_api import Page, sync_playwright
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "build"), str(ROOT / "web")]

import kernels  # noqa: E402
from exporter import graph  # noqa: E402

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
LENGTHS = {"decode": (50, 32), "prefill": (518, 1), "long": (4064, 16)}
"""Task → (tokens of prompt, tokens to generate)."""
FASTEST = "webgpu"
"""The graph that native ONNX Runtime runs fastest: float zero points, in the other one, have no fast path there."""


class Handler(http.server.SimpleHTTPRequestHandler):
    """web/, the kernels and the model under one address, isolated so that threads are allowed."""

    folders: dict[str, Path]
    gguf: Path | None = None

    def translate_path(self, path: str) -> str:
        if path == "/gguf/model.gguf":
            return str(self.gguf)
        first, _, rest = path.split("?")[0].lstrip("/").partition("/")
        return str(self.folders[first] / rest if first in self.folders else ROOT / "web" / first / rest)

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def native(model: Path, threads: int) -> Any:
    """A function (prompt, tokens) → {first, milliseconds, output}, as worker.js answers."""
    proto = graph.load(model)
    graph.set_accuracy_level(proto, 4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    with tempfile.NamedTemporaryFile(dir=model.parent, suffix=".onnx") as file:
        onnx.save(proto, file.name)
        session = onnxruntime.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in session.get_inputs() if value.name.startswith("past")}
    empty = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}
    outputs = ["topk_ids", *(name.replace("past_key_values", "present") for name in shapes)]

    def step(ids: list[int], past: dict[str, Any], done: int) -> tuple[int, dict[str, Any]]:
        total = done + len(ids)
        feeds = {"input_ids": np.array([ids]), "positions": np.array([len(ids) - 1])}
        feeds |= {"seqlens_k": np.array([total - 1], np.int32), "total_sequence_length": np.array(total, np.int32)}
        top, *present = session.run(outputs, feeds | past)
        return int(top[0, 0, 0]), dict(zip(shapes, present, strict=True))

    def run(prompt: list[int], tokens: int) -> dict[str, Any]:
        started = time.perf_counter()
        token, past = step(prompt, empty, 0)
        first, output, times = time.perf_counter() - started, [token], []
        while len(output) < tokens:
            before = time.perf_counter()
            token, past = step([token], past, len(prompt) + len(output) - 1)
            times.append((time.perf_counter() - before) * 1000)
            output.append(token)
        return {"first": first, "milliseconds": statistics.median(times or [0.0]), "output": output}

    return run


class Worker:
    """worker.js in a page; ``ask`` sends a message and returns the answer."""

    def __init__(self, page: Page, address: str) -> None:
        page.goto(f"{address}/bench/blank.html")
        page.evaluate("() => { self.worker = new Worker('/bench/worker.js', {type: 'module'}) }")
        self.page = page

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self.page.evaluate(
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


def wllama(page: Page, address: str, threads: int, tokenizer: Any) -> Any:
    """wllama.js in ``page``, as a function like ``native``'s."""
    page.goto(f"{address}/bench/blank.html")
    page.evaluate("async () => { self.peer = await import('/bench/wllama.js') }")
    opened = page.evaluate("(threads) => self.peer.begin({threads})", threads)
    print(f"wllama: opened in {opened['seconds']:.2f} s, {opened['threads']} threads")
    return lambda prompt, tokens: page.evaluate(
        "(message) => self.peer.run(message)", {"text": tokenizer.decode(prompt), "tokens": tokens}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gguf", type=Path, help="the model's GGUF, for wllama")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    Handler.folders = {"model": arguments.model, "bench": Path(__file__).parent, "kernels": kernels_folder()}
    Handler.folders |= {"peers": Path(__file__).parents[1] / "peers" / "node_modules"}
    Handler.gguf = arguments.gguf
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    manifest = json.loads((arguments.model / "manifest.json").read_text())
    tokenizer = Tokenizer.from_file(str(arguments.model / manifest["tokenizer"]))
    ids = tokenizer.encode(prose()).ids
    figures: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=ARGUMENTS
        )
        runs = {"native": native(arguments.model / manifest["graphs"][FASTEST], arguments.threads)}
        for build in ("relaxed", "plain"):
            worker = Worker(browser.new_page(), address)
            choice = {"build": build, "threads": arguments.threads}
            opened = worker.ask({"open": {"manifest": manifest, "base": f"{address}/", "choice": choice}})
            print(f"{build}: opened in {opened['seconds']:.2f} s, {opened['bytes'] >> 20} MiB, {opened['runtime']}")
            runs[build] = lambda prompt, tokens, worker=worker: worker.ask({"prompt": prompt, "tokens": tokens})
        if arguments.gguf:
            runs["wllama"] = wllama(browser.new_page(), address, arguments.threads, tokenizer)
        for number in range(arguments.rounds):
            for task, (length, tokens) in LENGTHS.items():
                for name, run in runs.items():
                    if task == "long" and (number or name in ("native", "wllama")):
                        continue
                    prompt = ids[number * 61 : number * 61 + length]
                    figures.setdefault(task, {}).setdefault(name, []).append(run(prompt, tokens))
            print(f"round {number + 1} of {arguments.rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
        browser.close()
    for task, by_runtime in figures.items():
        for name, results in by_runtime.items():
            first = statistics.median(result["first"] for result in results)
            each = statistics.median(result["milliseconds"] for result in results)
            speed = f"{1000 / each:6.1f} tokens/s" if each else ""
            pairs = zip(results, figures[task].get("native", []), strict=False)
            same = sum(a["output"] == b["output"] for a, b in pairs)
            note = f"the same tokens as native in {same} of {len(results)}" if results[0]["output"] else ""
            print(f"{task:8} {name:8} first token {first:6.2f} s  {speed} {note}")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


def prose() -> str:
    """Text of more than 4,064 tokens: this checkout's own documents, repeated."""
    text = "".join(path.read_text() for path in sorted(ROOT.glob("*.md")))
    return text * (1 + 40_000 // len(text))


def kernels_folder() -> Path:
    target = ROOT / ".cache" / "kernels-site" / "kernels"
    kernels.build(target, ROOT / ".cache" / "kernels")
    return target


if __name__ == "__main__":
    main()
