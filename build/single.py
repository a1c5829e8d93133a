"""The site as one .html that a double-click opens: page, Python, runtime and one model inside.

On file:// there is no fetch, OPFS, service worker or thread, and modules come from blob: addresses alone. So every file
travels as base64 in the page, and web/single/ answers for it; imports are rewritten here to names that it can link.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from handbill.manifest import NAME, Manifest

PIECE = 48 << 10
"""Bytes of a file in one element. As base64 they are 64 Ki characters, the longest text that Chromium puts into
one node; and a multiple of 3, so that base64 needs no padding inside a file."""

MOST_BYTES = 400_000_000
"""Of a model. A browser holds the page's text and the model side by side; past this the tab is too large for many."""

PAGE = ("licences/", "micropython/", "page.py", "pyscript/", "start.js")
ENGINE = ("engine.py", "hash/", "kernels/", "models/", "pyodide/", "python.mjs", "sessions/", "tokenizers/")
NOBODY = (
    *("index.html", "icon.svg", "style.css", "boot.js"),
    *("store.js", "service.js", "holds.js", "inventory.js", "releases.js", "fresh.html", "fresh.js"),
    *("ort/", "sessions/graphics.js", "sessions/ort.js", "sessions/webgpu.js"),
    *("sessions/cpu-loader.js", "sessions/cpu-pool.js", "kernels/threads.wasm"),
)
"""Who needs what of dist/; the rest is small and goes to both. On file:// there are no threads, and ORT Web is left
out: 14 MB and more for a model that our kernels run."""

CSP = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' blob: data:; "
    "worker-src data: blob:; connect-src blob: data:; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)

_SINGLE = Path(__file__).resolve().parent.parent / "web" / "single"
_STATIC = re.compile(r"""(\bfrom\s*|\bimport\s*|\bimport\(\s*)(["'])(\.{1,2}/[^"']+)\2""")
_COMPUTED = re.compile(r"""(?<![.\w])import\((?!\s*["'])""")
_META = re.compile(r"\bimport\.meta\.url\b")


class SingleFileError(Exception):
    """The site cannot become one file. The message is a sentence for the reader."""


def write(dist: Path, slug: str, target: Path) -> None:
    """Write the site in ``dist`` with the model ``slug`` to ``target`` as one page, whole or not at all.

    Raises SingleFileError for a model that cannot run this way.
    """
    manifest = Manifest.from_json((dist / "models" / slug / NAME).read_text(encoding="utf-8"))
    size = sum(entry.bytes for entry in manifest.files)
    if not manifest.plan:
        raise SingleFileError(
            f"{slug} has no plan for our own kernels, the only ones that run on file://: serve dist/."
        )
    if size > MOST_BYTES:
        raise SingleFileError(
            f"{slug} has {size / 1e6:.0f} MB, and one page holds {MOST_BYTES / 1e6:.0f}: serve dist/."
        )
    readers = _readers(dist, manifest)
    total = sum((dist / name).stat().st_size for names in readers.values() for name in names)
    weights = sum(manifest.file(name).bytes for name in manifest.weights)
    before, after = _page(dist, weights).split("<!-- files -->")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with (
            partial.open("w", encoding="utf-8") as page,
            tqdm(total=total, desc=f"Writing {target.name}", unit="B", unit_scale=True, ascii=" #") as bar,
        ):
            page.write(before)
            for reader, names in readers.items():
                for name in names:
                    page.writelines(_elements(name, reader, _content(dist, name, slug)))
                    bar.update((dist / name).stat().st_size)
                if reader == "both":  # What the page's thread needs is there; it starts while the rest is parsed.
                    page.write("<script>single.begin()</script>\n")
            page.write(after)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _readers(dist: Path, manifest: Manifest) -> dict[str, list[str]]:
    """Files of dist/ by who reads them, in the order they go in.

    The engine's Python comes after the weights: booting beside the parser, it would be ready a second or two earlier
    and the tab half the file's size larger meanwhile.
    """
    readers: dict[str, list[str]] = {"page": [], "both": [], "engine": []}
    site = json.loads((dist / "site.json").read_text(encoding="utf-8"))
    graphs = manifest.graphs.values()
    model = [NAME, *sorted(entry.name for entry in manifest.files if entry.name not in graphs)]
    ours = [name for name in ["site.json", *site["files"]] if not name.startswith((*NOBODY, "models/"))]
    for name in [*ours, *(f"models/{manifest.slug}/{entry}" for entry in model)]:
        readers["page" if name.startswith(PAGE) else "engine" if name.startswith(ENGINE) else "both"].append(name)
    readers["engine"].sort(key=lambda name: not name.endswith(".bin"))
    return readers


def _elements(name: str, reader: str, data: bytes) -> Iterator[str]:
    """``data`` as elements that web/single/page.js takes piece by piece: weights as they are, all else gzipped."""
    attributes = f'data-reader="{reader}" data-name="{html.escape(name)}"'
    if not name.endswith(".bin"):
        attributes += f' data-unpacked="{len(data)}"'
        data = gzip.compress(data, 9, mtime=0)
    label = f'<script type="application/octet-stream" {attributes} data-total="{len(data)}">'
    for at in range(0, len(data), PIECE):
        piece = base64.b64encode(data[at : at + PIECE]).decode()
        yield f"{label}{piece}</script><script>single.take()</script>\n"


def _content(dist: Path, name: str, slug: str) -> bytes:
    """The file ``name`` as it goes in: modules made linkable, site.json with the one model."""
    data = (dist / name).read_bytes()
    if name == "site.json":
        site = json.loads(data)
        site["models"] = [model for model in site["models"] if model["slug"] == slug]
        return json.dumps(site).encode()
    return linkable(name, data.decode()).encode() if name.endswith((".js", ".mjs")) else data


def linkable(name: str, text: str) -> str:
    """The module ``text`` of dist/``name`` with imports that web/single/files.js can link.

    Relative specifiers become "handbill/NAME". In modules of ours import.meta.url becomes the file's address there, and
    imports of computed addresses go through a function; third parties' own are left to the options they offer.
    """
    folder = posixpath.dirname(name)

    def named(match: re.Match[str]) -> str:
        keyword, _, path = match.groups()
        return f'{keyword}"handbill/{posixpath.normpath(posixpath.join(folder, path))}"'

    text = _STATIC.sub(named, text)
    if folder in ("pyscript", "micropython", "pyodide"):
        return text
    return _COMPUTED.sub("handbillImport(", _META.sub(f'"handbill://site/{name}"', text))


def _page(dist: Path, weights: int) -> str:
    """index.html with style, icon and the code of web/single/ inside, and a place for the files.

    ``weights`` is the bytes of weights to come, for the progress that the page shows.
    """
    page = (dist / "index.html").read_text(encoding="utf-8")
    files, outer, engine_side = (
        (_SINGLE / name).read_text(encoding="utf-8") for name in ("files.js", "page.js", "engine.js")
    )
    icon = base64.b64encode((dist / "icon.svg").read_bytes()).decode()
    engine = base64.b64encode(f"{files}\n{engine_side}".encode()).decode()
    inner = f'<script type="text/plain" id="engine-side" data-weights="{weights}">{engine}</script>'
    scripts = f"{inner}\n<script>\n{files}\n{outer}</script>\n"
    changes = {
        r'content="default-src[^"]*"': f'content="{CSP}"',
        r'<link rel="icon"[^>]*>': f'<link rel="icon" href="data:image/svg+xml;base64,{icon}">',
        r'<link rel="stylesheet"[^>]*>': f"<style>\n{(dist / 'style.css').read_text(encoding='utf-8')}</style>",
        r'<script src="boot.js"></script>': f"<script>\n{(dist / 'boot.js').read_text(encoding='utf-8')}</script>",
        r'<script type="module"[^>]*></script>\n': "",
        r'<script type="py"[^>]*></script>\n': "",
        r'"\./micropython/': '"handbill://site/micropython/',  # Its loader takes a file: address for Node's business.
        r"</body>": f"{scripts}<!-- files --><script>single.end()</script>\n</body>",
    }
    for pattern, text in changes.items():
        page, count = re.subn(pattern, text.replace("\\", r"\\"), page)
        if not count:
            raise SingleFileError(f"{dist / 'index.html'} has nothing like {pattern}: assemble the site again.")
    return page
