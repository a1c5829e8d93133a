"""build/check.py, scan.py and budget.py: a whole site passes, and each way of not being whole is found."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest

import assemble
import budget
import check
import scan
import vendor
from small_site import checkout, write


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """A whole site in miniature."""
    return assemble.assemble(checkout(tmp_path))


def with_file(root: Path, name: str, text: str) -> list[str]:
    """The faults of the miniature with web/``name`` as given."""
    write(root / "web" / name, text)
    return check.check(assemble.assemble(root))


def test_a_whole_site_has_no_fault(dist: Path) -> None:
    assert check.check(dist) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("index.html", '<script src="https://cdn.example/x.js"></script>'),
        ("index.html", '<link rel="stylesheet" href="//cdn.example/x.css">'),
        ("index.html", '<img srcset="https://cdn.example/1.png 1x">'),
        ("index.html", '<p style="background: url(https://cdn.example/1.png)">'),
        ("index.html", "<style>@import 'https://cdn.example/x.css';</style>"),
        ("index.html", '<script>fetch("https://cdn.example/x")</script>'),
        ("index.html", """<script type="py" config='{"interpreter": "https://cdn.example/pyodide.mjs"}'></script>"""),
        ("icon.svg", '<svg xmlns="http://www.w3.org/2000/svg"><image href="https://cdn.example/x.png"/></svg>'),
        ("style.css", "a { background: url('https://cdn.example/x.png') }"),
        ("style.css", '@import "//cdn.example/x.css";'),
        ("app.js", "fetch('https://cdn.example/x');"),
        ("app.js", "const slash = /[/'\"]/; fetch(`https://${host}/x`);"),
        ("app.js", "const quote = /[x/]'/; fetch('https://cdn.example/x');"),
        ("app.js", "const text = `${ok ? `a ${'https://cdn.example'} b` : ''}`;"),
        ("app.js", "new WebSocket('wss://cdn.example/x');"),
        ("app.js", "const half = 4 / 2; const u = '//cdn.example/x'; const other = 4 / 2;"),
        ("app.js", "const base = 'see https://cdn.example/x for more';"),
        ("page.py", "URL = 'https://cdn.example/x'\n"),
        ("page.py", "def f(host):\n    return f'https://{host}/x'\n"),
        ("handbill/core.py", "async def f():\n    await pyfetch('//cdn.example/x')\n"),
    ],
)
def test_an_outside_address_is_found(tmp_path: Path, name: str, text: str) -> None:
    checkout(tmp_path)
    faults = with_file(tmp_path, name, text)
    assert len(faults) == 1
    assert faults[0].startswith(f"{name}, line ")
    assert "names an address outside" in faults[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "index.html",
            '<!-- https://a.example --><a href="https://a.example/licence">Licence</a><a href="#top">Top</a>',
        ),
        ("index.html", '<img src="data:image/png;base64,AAAA"><svg><use href="#icon"/></svg>'),
        ("index.html", '<img srcset="style.css 1x, app.js 2x">'),
        ("index.html", "<style>a { color: red }</style>url(absent.png)"),
        ("icon.svg", '<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>'),
        ("style.css", "/* url(https://a.example/x) */ a { color: red }"),
        (
            "app.js",
            "// https://a.example\n/* 'https://a.example' */ const ns = 'http://www.w3.org/2000/svg', r = /\\/\\//;",
        ),
        ("app.js", "const kinds = ['text/html', 'a/b', '/absolute', 'and/or.']; const r = a / b / c; // it's done"),
        (
            "app.js",
            'import "./sessions/one.js"; const u = `models/${slug}/manifest.json`; const v = new URL("ort/", base);',
        ),
        ("app.js", "const escaped = 'it\\'s // fine'; const t = `\\` // ${'x'} `;"),
        ("page.py", '"""See https://a.example."""\n# https://a.example\nX = "text/plain"\n'),
        ("page.py", "def f(base, slug):\n    return f'{base}models/{slug}/manifest.json'\n"),
    ],
)
def test_what_is_not_fetched_is_no_fault(tmp_path: Path, name: str, text: str) -> None:
    checkout(tmp_path)
    assert with_file(tmp_path, name, text) == []


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("index.html", '<script src="absent.js"></script>', "absent.js"),
        (
            "index.html",
            """<script type="py" config='{"interpreter": "./pyodide/absent.mjs"}'></script>""",
            "./pyodide/absent.mjs",
        ),
        ("style.css", "a { background: url(absent.png) }", "absent.png"),
        ("app.js", 'import { x } from "./absent.js";', "./absent.js"),
        ("app.js", 'import("ort/absent.mjs");', "ort/absent.mjs"),
        ("app.js", "const u = `kernels/${name}.wasm`;", "kernels/*.wasm"),
        ("app.js", 'const up = new URL("../../secret.js", import.meta.url);', "../../secret.js"),
        ("sessions/one.js", 'import { x } from "../absent.js";', "../absent.js"),
        ("page.py", "X = 'python/absent.whl'\n", "python/absent.whl"),
        ("page.py", "def f(base):\n    return f'{base}sessions/absent.js'\n", "*sessions/absent.js"),
    ],
)
def test_a_file_that_is_asked_for_and_absent_is_found(tmp_path: Path, name: str, text: str, asked: str) -> None:
    checkout(tmp_path)
    write(tmp_path.parent / "secret.js", "")
    (fault,) = with_file(tmp_path, name, text)
    assert fault.startswith(f"{name}, line ")
    assert fault.endswith(f": asks for {asked!r}, which is not in dist/.")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("app.js", "const open = 'never closed\n", "a string that begins in line 1 is not closed"),
        ("page.py", "def f(:\n", "cannot be read as py"),
        ("index.html", "<script type='py' config='{}'></script>", "names no interpreter"),
        ("index.html", "<script type='py' config='{'></script>", "cannot be read as html"),
    ],
)
def test_a_file_that_does_not_parse_is_a_fault(tmp_path: Path, name: str, text: str, said: str) -> None:
    checkout(tmp_path)
    (fault,) = with_file(tmp_path, name, text)
    assert said in fault


def append(path: Path) -> None:
    """Change a file without changing what links to it elsewhere."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data + b"x")


def flip(path: Path) -> None:
    """Change one byte and keep the size."""
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["style.css", "licences/library.txt", "models/tiny/weights-01.bin", "models/tiny/tokenizer.json"]
)
@pytest.mark.parametrize("harm", [append, flip, Path.unlink])
def test_a_wrong_hash_or_a_missing_file_is_found(dist: Path, name: str, harm: Callable[[Path], None]) -> None:
    harm(dist / name)
    said = "is missing from dist/" if harm is Path.unlink else "is not what was put there"
    assert any(fault.startswith(f"{name} {said}") for fault in check.check(dist))


def test_a_link_out_of_the_site_is_not_a_file_of_it(dist: Path, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside.css", (dist / "style.css").read_text())
    (dist / "style.css").unlink()
    (dist / "style.css").symlink_to(outside)
    assert "style.css is missing from dist/: run python build/assemble.py." in check.check(dist)


def test_strays_are_found(dist: Path) -> None:
    write(dist / "notes.txt", "left over")
    write(dist / "models" / "tiny" / "old.bin", "left over")
    assert check.check(dist) == [
        "models/tiny/old.bin is in dist/, but nothing lists it: run python build/assemble.py.",
        "notes.txt is in dist/, but nothing lists it: run python build/assemble.py.",
    ]


def test_a_compressed_copy_of_something_else_is_found(dist: Path) -> None:
    for suffix, data in ((".br", brotli.compress(b"other")), (".gz", gzip.compress(b"other"))):
        copy = dist / f"ort/library.mjs{suffix}"
        copy.unlink()
        copy.write_bytes(data)
        (fault,) = check.check(dist)
        assert fault.startswith(f"ort/library.mjs{suffix} does not unpack to library.mjs: delete .cache/compressed and")
        copy.write_bytes(b"not compressed at all")
        (fault,) = check.check(dist)
        assert fault.startswith(f"ort/library.mjs{suffix} cannot be unpacked (")
        copy.unlink()


def test_models_that_cannot_be_used_are_found(dist: Path) -> None:
    manifest = dist / "models" / "tiny" / "manifest.json"
    text = manifest.read_text()
    manifest.unlink()
    assert "models/tiny/manifest.json is missing: run python build/assemble.py." in check.check(dist)
    manifest.write_text("{}")
    assert any(fault.startswith("models/tiny/manifest.json cannot be used: ") for fault in check.check(dist))
    manifest.write_text(text.replace('"slug": "tiny"', '"slug": "other"'))
    assert "models/tiny/manifest.json is the manifest of other." in check.check(dist)


def test_a_site_without_a_model_or_without_a_list_is_not_whole(tmp_path: Path) -> None:
    dist = assemble.assemble(checkout(tmp_path, ()))
    (fault,) = check.check(dist)
    assert fault.startswith("dist/ holds no model: run python exporter/export.py")
    for text in ("{", "[]", "{}", '{"files": {"a": {}}, "models": []}'):
        (dist / "site.json").write_text(text)
        (fault,) = check.check(dist)
        assert "site.json cannot be read" in fault
    (dist / "site.json").unlink()
    (fault,) = check.check(dist)
    assert fault.endswith("site.json is missing: run python build/assemble.py.")


def vendored(root: Path, name: str, text: str) -> list[str]:
    """The faults of the miniature with one more third-party file."""
    inputs = vendor.Inputs.of(checkout(root))
    pins = vendor.read_pins(inputs.pins)
    library = (inputs.cache / inputs.key() / pins[0].target).read_text()
    write(root / "beside", text)
    vendor.write_pins(inputs.pins, [*pins, vendor.Pin(name, "npm:x/x", vendor.sha256_of(root / "beside"))])
    write(inputs.cache / inputs.key() / pins[0].target, library)
    write(inputs.cache / inputs.key() / name, text)
    return check.check(assemble.assemble(root))


def test_a_third_party_host_needs_a_reason(tmp_path: Path) -> None:
    assert (
        vendored(tmp_path / "1", "micropython/micropython.mjs", "const u = 'https://cdn.jsdelivr.net/pyodide/';") == []
    )
    (fault,) = vendored(tmp_path / "2", "micropython/micropython.mjs", "const u = 'https://telemetry.example/x';")
    assert fault.startswith(
        "micropython/micropython.mjs names the host telemetry.example: find out whether it is asked"
    )


def test_a_pyscript_chunk_must_travel_or_be_known_as_unneeded(tmp_path: Path) -> None:
    assert vendored(tmp_path / "1", "pyscript/core.js", 'import("./py-Dl-y4L1b.js"); import("./core.js")') == []
    (fault,) = vendored(tmp_path / "2", "pyscript/core.js", 'import("./py-editor-C4XsZtn7.js")')
    assert fault.startswith("pyscript/core.js imports py-editor-C4XsZtn7.js")


def test_the_table_counts_what_travels(dist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, over = budget.weigh(dist)
    assert over == []
    model = sum(
        budget.wire_bytes(dist / "models/tiny" / n)
        for n in ("model.onnx", "weights-01.bin", "tokenizer.json", "manifest.json")
    )
    (row,) = [line for line in table.splitlines() if line.startswith("tiny, wasm")]
    assert f"{model:,}" in row
    assert "tiny, webgpu" not in table, "the export has no graph for it"
    site = json.loads((dist / "site.json").read_text(encoding="utf-8"))
    assert f"{site['visit']['wasm'] + budget.wire_bytes(dist / 'site.json') + model:,}" in row, "what the page says"
    monkeypatch.setitem(budget.LIMITS, "page", 10)
    (sentence,) = budget.weigh(dist)[1]
    assert sentence.startswith("page takes ")
    assert "more than its budget of 10" in sentence


def test_wire_bytes_are_those_of_the_smallest_form(tmp_path: Path) -> None:
    path = write(tmp_path / "a.js", "x" * 100)
    assert budget.wire_bytes(path) == 100
    write(tmp_path / "a.js.gz", "x" * 40)
    write(tmp_path / "a.js.br", "x" * 30)
    assert budget.wire_bytes(path) == 30
    assert budget.wire_bytes(tmp_path / "absent.js") == 0


def test_the_command(dist: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["check.py", "--dir", str(dist)])
    assert check.main() == 0
    assert "check: dist/ is whole" in capsys.readouterr().out
    (dist / "style.css").unlink()
    assert check.main() == 1
    assert capsys.readouterr().err.startswith("check: style.css is missing from dist/")


def test_lines_are_counted_from_one() -> None:
    text = "/* a\n b */\nconst t = `x\ny`;\nconst s = 'here';\n"
    assert scan._javascript(text) == [scan.Mention(3, "x\ny"), scan.Mention(5, "here")]
    assert scan._css("/* a\n */\na { background: url(x.png) }") == [scan.Mention(3, "x.png", must_resolve=True)]


def test_our_own_page_can_be_read() -> None:
    for path in (check.ROOT / "web").glob("*"):
        if path.is_file():
            scan.mentions(path)


def test_site_json_is_what_the_page_reads(dist: Path) -> None:
    site = json.loads((dist / "site.json").read_text())
    assert set(site) == {"version", "models", "visit", "files"}
    assert set(site["visit"]) == {"cpu", "wasm", "jspi", "webgpu"}, "sessions/choose.js's names"
    assert set(site["models"][0]) == {"slug", "title", "bytes"}


def test_templates_are_read_through_braces_and_escapes() -> None:
    found = scan._javascript("const t = `a${{b: 'c'}.b}d`, u = `e\\`f`, g = 'h';")
    assert {mention.text for mention in found} == {"c", "a*d", "e\\`f", "h"}
