"""How many requests at a time, and how large: the store's downloads from hosts that are slow in different ways.

``python tests/bench/download.py`` writes results/download.json and prints it. The hosts are of our own: one that is as
fast as it can be, one that is far away (a pause before each answer) and one that gives each connection so many bytes a
second, as shared hosts do. Each download is of 24 MB in one shard, into OPFS, verified; medians of three.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), *(str(HERE.parents[1] / name) for name in ("web", "build", "tests"))]

from playwright.sync_api import Browser, Route, sync_playwright  # noqa: E402

import bare_store  # noqa: E402
import fault_server  # noqa: E402
import serve  # noqa: E402
import tabs  # noqa: E402

ROUNDS = 3
BYTES = 24_000_000
LANES = (1, 2, 4, 6)
PIECES_MIB = (1, 4, 16, 64)
LANES_TRIED_WITH, PIECE_TRIED_WITH = 4, 4
HOSTS = {"near": (0.0, 0.0), "far": (0.15, 0.0), "shared": (0.05, 4e6)}
"""Seconds before an answer, and bytes a second of a connection (0: as it comes)."""


def handler(pause: float, rate: float) -> type[fault_server.Handler]:
    """A handler of such a host."""

    class Slow(fault_server.Handler):
        def _copy(self, file: Any, first: int, left: int) -> None:
            time.sleep(pause)
            if not rate:
                super()._copy(file, first, left)
                return
            file.seek(first)
            begun = time.monotonic()
            for sent in range(0, left, 1 << 16):
                self.wfile.write(file.read(min(1 << 16, left - sent)))
                time.sleep(max(0.0, begun + (sent + (1 << 16)) / rate - time.monotonic()))

    noted: dict[str, Any] = {"mischief": fault_server.Mischief(), "connections": set()}
    return type("Noting", (Slow,), noted)


def seconds(browser: Browser, address: str, lanes: int, piece_mib: int) -> float:
    """One download with so many requests at a time, of such pieces; from the worker's start to `stored`."""
    context = browser.new_context()

    def change(name: str, old: str, new: str) -> None:
        def fulfil(route: Route) -> None:
            response = route.fetch()
            text = response.text()
            if old not in text:
                raise RuntimeError(f"{name} does not say {old!r} any more: mend this bench")
            route.fulfill(response=response, body=text.replace(old, new))

        context.route(f"**/{name}", fulfil)

    change("download.js", "const LANES = 4;", f"const LANES = {lanes};")
    change("pieces.js", "const PIECE = 4 << 20;", f"const PIECE = {piece_mib} << 20;")
    try:
        store = bare_store.Store(context, address)
        end = store.end()
        if end["kind"] != "stored":
            raise RuntimeError(f"the download failed: {end}")
        first, last = store.page.evaluate(
            """() => ["progress", "stored"].map((kind) => performance.getEntriesByName(kind)[0].startTime)"""
        )
        return float(last - first) / 1000
    finally:
        context.close()


def main() -> int:
    """The command."""
    tried = sorted({(lanes, PIECE_TRIED_WITH) for lanes in LANES} | {(LANES_TRIED_WITH, piece) for piece in PIECES_MIB})
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        bare_store.BYTES = BYTES
        site = bare_store.stock(tabs.DIST, Path(home) / "dist")
        browser = tabs.launch(playwright)
        for host, (pause, rate) in HOSTS.items():
            server = serve.Server(site, 0)
            server.RequestHandlerClass = handler(pause, rate)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            times: dict[tuple[int, int], list[float]] = {one: [] for one in tried}
            for _, one in itertools.product(range(ROUNDS), tried):
                times[one].append(seconds(browser, server.address, *one))
            found[host] = {
                f"{lanes} × {piece} MiB": round(statistics.median(times[lanes, piece]), 2) for lanes, piece in tried
            }
            print(host, found[host], flush=True)
            server.shutdown()
        browser.close()
    (HERE / "results" / "download.json").write_text(
        json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
