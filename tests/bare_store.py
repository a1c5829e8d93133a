"""The page's store alone: its worker in a tab without a page, and a site with a model of random bytes for it."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Route

import tabs
from handbill.manifest import NAME, File
from links import link
from samples import make_manifest
from vendor import sha256_of

PIECE = 4 << 20
"""Bytes of one request (web/pieces.js)."""

SHARD = "weights-01.bin"
BYTES = 2 * PIECE + 1_000_000
"""Of the shard: two pieces and a bit."""

SMALL = {"plan.json": b"{}" * 500, "tokenizer.json": b"[]" * 700, "model.onnx": b"graph" * 100}

CHIP = """Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => ({
  info: {}, limits: { maxBufferSize: 2 ** 30, maxStorageBufferBindingSize: 2 ** 30 },
}) } });
"""
"""Code that gives a worker a graphics chip, as far as its facts say: nothing runs on it."""

HURRY = """const later = self.setTimeout;
self.setTimeout = (work, ms, ...values) => later(work, ms / (ms === 15000 ? 5 : 50), ...values);
"""
"""Code that makes a worker impatient: pauses pass fifty times as fast, and a connection is given up after 3 s of
silence (a busy machine is silent for a while, too)."""


def stock(dist: Path, home: Path, slug: str = "big", seed: int = 1) -> Path:
    """``home``: the page of ``dist`` with one model, whose shard holds random bytes. No runtime could open it."""
    shutil.copytree(dist, home, copy_function=link, ignore=shutil.ignore_patterns("models", "site.json*"))
    site = json.loads((dist / "site.json").read_text(encoding="utf-8"))
    (home / "site.json").write_text(json.dumps(site | {"models": [{"slug": slug}]}), encoding="utf-8")
    put(home, slug, {SHARD: random.Random(seed).randbytes(BYTES), **SMALL})
    return home


def put(home: Path, slug: str, contents: dict[str, bytes]) -> None:
    """Write the files of a model and its manifest into the site ``home``; a file that is there is replaced."""
    folder = home / "models" / slug
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, data in contents.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)
        files.append(File(name, len(data), hashlib.sha256(data).hexdigest()))
    weights = [name for name in contents if name.endswith(".bin")]
    graphs = {"wasm": "model.onnx", "webgpu": "model.onnx"}
    manifest = make_manifest(slug=slug, title=slug.title(), graphs=graphs, weights=weights, files=files)
    (folder / NAME).write_text(manifest.to_json(), encoding="utf-8")


def prefix(context: BrowserContext, name: str, code: str) -> None:
    """Serve the script ``name`` with ``code`` before it."""

    def fulfil(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=code + response.text())

    context.route(f"**/{name}", fulfil)


class Store:
    """The store's worker in a tab of ``context``, started for ``model`` on ``runtime``, each "" for the best."""

    def __init__(self, context: BrowserContext, address: str, model: str = "", runtime: str = "cpu") -> None:
        self.page = context.new_page()
        self.page.goto(f"{address}site.json")  # Any document of the site that starts nothing itself.
        self.page.evaluate(
            """(wish) => {
                self.heard = [];
                self.channel = new BroadcastChannel("a tab" + Math.random());
                channel.onmessage = ({ data }) => {
                    performance.mark(JSON.parse(data).kind);
                    heard.push(JSON.parse(data));
                };
                self.store = new Worker("store.js", { type: "module", name: channel.name });
                store.onerror = ({ message }) => heard.push({ kind: "fault", fault: "crash", detail: message });
                store.postMessage(wish);
            }""",
            {"model": model, "runtime": runtime},
        )

    def hear(self, *kinds: str) -> dict[str, Any]:
        """Wait for the first message of one of these kinds."""
        message = self.page.wait_for_function(
            "(kinds) => heard.find(({ kind }) => kinds.includes(kind))", arg=list(kinds), timeout=20_000
        )
        found: dict[str, Any] = message.json_value()
        return found

    def end(self) -> dict[str, Any]:
        """How it ended: `stored` or `fault`."""
        return self.hear("stored", "fault")

    def heard(self, kind: str) -> list[dict[str, Any]]:
        """All messages of that kind so far."""
        found: list[dict[str, Any]] = self.page.evaluate(
            "(wanted) => heard.filter(({ kind }) => kind === wanted)", kind
        )
        return found

    def say(self, **message: Any) -> None:
        """Put a message of the page on the channel; what was heard before is forgotten."""
        self.page.evaluate("(message) => { heard.length = 0; channel.postMessage(JSON.stringify(message)); }", message)

    def files(self) -> dict[str, int]:
        """Files in OPFS and their sizes."""
        found: dict[str, int] = self.page.evaluate(
            """async () => {
                const root = await navigator.storage.getDirectory();
                const name = `handbill ${encodeURIComponent(new URL("./", location.href).pathname)}`;
                const folder = await root.getDirectoryHandle(name);
                const sizes = {};
                for await (const [name, handle] of folder.entries()) {
                    if (handle.kind === "file") sizes[name] = (await handle.getFile()).size;
                }
                return sizes;
            }"""
        )
        return found

    def wait_for(self, sha256: str) -> None:
        """Wait until a file is in OPFS."""
        tabs.until(self.page, lambda: sha256 in self.files(), sha256, every_ms=50)

    def filled(self, sha256: str) -> list[int]:
        """Bytes there of each piece of a file that comes."""
        found: list[int] = self.page.evaluate(
            """async ({ name, bytes }) => {
                const root = await navigator.storage.getDirectory();
                const path = `handbill ${encodeURIComponent(new URL("./", location.href).pathname)}`;
                const folder = await root.getDirectoryHandle(path);
                const file = await (await folder.getFileHandle(name)).getFile();
                return [...new Uint32Array(await file.slice(bytes).arrayBuffer())];
            }""",
            {"name": f"{sha256}.part", "bytes": BYTES},
        )
        return found


def shas(site: Path, slug: str = "big") -> dict[str, str]:
    """sha256 of the model's files by name."""
    return {path.name: sha256_of(path) for path in (site / "models" / slug).iterdir() if path.name != NAME}
