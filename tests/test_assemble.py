"""build/assemble.py on a checkout in miniature."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import brotli
import pytest

import assemble
import compress
import vendor
from handbill import __version__
from handbill.manifest import ManifestError
from small_site import LIBRARY, PAGE, checkout, export, write


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_site_is_made_of(tmp_path: Path) -> None:
    dist = assemble.assemble(checkout(tmp_path))
    files = tree(dist)
    plain = {name for name in files if not name.endswith((".br", ".gz"))}
    assert plain == {
        *("index.html", "style.css", "app.js", "site.json"),
        *("handbill/core.py", "sessions/one.js", "ort/library.mjs", "licences/handbill.txt", "licences/library.txt"),
        *(f"models/tiny/{name}" for name in ("model.onnx", "weights-01.bin", "tokenizer.json", "manifest.json")),
    }
    assert files["index.html"] == PAGE.encode()
    site = json.loads(files["site.json"])
    assert site["version"] == __version__
    assert [model["slug"] for model in site["models"]] == ["tiny"]
    assert site["models"][0]["bytes"] == sum(
        len(files[f"models/tiny/{name}"]) for name in ("model.onnx", "weights-01.bin", "tokenizer.json")
    )
    listed = plain - {"site.json", *(n for n in plain if n.startswith("models/") and "manifest" not in n)}
    assert set(site["files"]) == listed
    for name, entry in site["files"].items():
        assert entry == {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}


def test_compressed_copies_stand_beside_what_shrinks(tmp_path: Path) -> None:
    checkout(tmp_path)
    write(tmp_path / "web" / "short.js", "export {};\n" * 50)
    (tmp_path / "web" / "noise.png").write_bytes(random.Random(0).randbytes(2000))
    (tmp_path / "web" / "noise.svg").write_bytes(random.Random(0).randbytes(2000))
    files = tree(assemble.assemble(tmp_path))
    assert brotli.decompress(files["ort/library.mjs.br"]) == LIBRARY
    assert gzip.decompress(files["ort/library.mjs.gz"]) == LIBRARY
    assert len(files["ort/library.mjs.br"]) < len(LIBRARY)
    assert "models/tiny/tokenizer.json.br" in files
    assert "models/tiny/weights-01.bin.br" not in files, "weights do not shrink"
    assert "noise.png.gz" not in files, "a kind that is compressed already"
    assert "noise.svg.gz" not in files, "no smaller than the file itself"
    assert "short.js.br" not in files, "too small to be worth a second file"


def test_files_with_the_same_bytes_share_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout(tmp_path)
    for name in ("a.js", "b.js", "c.js"):
        write(tmp_path / "web" / name, "export {};\n" * 500)
    done = []
    real = compress._compress
    monkeypatch.setattr(compress, "_compress", lambda *job: (done.append(job[2]), real(*job)))
    dist = assemble.assemble(tmp_path)
    assert len(done) == len(set(done))
    assert (dist / "a.js.br").samefile(dist / "c.js.br")


def test_a_second_run_compresses_nothing_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist = assemble.assemble(checkout(tmp_path))
    before = tree(dist)

    def refuse(*_: object) -> None:
        raise AssertionError("compressed again")

    monkeypatch.setattr(compress, "_compress", refuse)
    assert tree(assemble.assemble(tmp_path)) == before


def test_models_are_linked_not_copied_and_own_files_are_not_linked(tmp_path: Path) -> None:
    dist = assemble.assemble(checkout(tmp_path))
    assert (dist / "models/tiny/weights-01.bin").samefile(tmp_path / "models/tiny/weights-01.bin")
    assert not (dist / "index.html").samefile(tmp_path / "web/index.html")


def test_another_disk_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def across(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", across)
    dist = assemble.assemble(checkout(tmp_path))
    assert (dist / "models/tiny/weights-01.bin").read_bytes() == bytes(range(256)) * 16


def test_the_smallest_model_comes_first_unless_named(tmp_path: Path) -> None:
    checkout(tmp_path, ())
    export(tmp_path, "a-large-one", bytes(9000))
    export(tmp_path, "b-small-one", bytes(100))
    (tmp_path / "models" / "unfinished").mkdir()
    offered = json.loads((assemble.assemble(tmp_path) / "site.json").read_text())["models"]
    assert [model["slug"] for model in offered] == ["b-small-one", "a-large-one"]
    dist = assemble.assemble(tmp_path, ["a-large-one"])
    assert [model["slug"] for model in json.loads((dist / "site.json").read_text())["models"]] == ["a-large-one"]
    assert not (dist / "models" / "b-small-one").exists(), "what is no longer asked for goes"


def test_bad_models_leave_the_old_site(tmp_path: Path) -> None:
    before = tree(assemble.assemble(checkout(tmp_path)))
    with pytest.raises(
        assemble.AssembleError, match=r"models/tinny/manifest\.json does not exist.*did you mean tiny\?"
    ):
        assemble.assemble(tmp_path, ["tinny"])
    with pytest.raises(assemble.AssembleError, match=r"run python exporter/export\.py zebra first"):
        assemble.assemble(tmp_path, ["zebra"])
    shard = tmp_path / "models/tiny/weights-01.bin"
    shard.unlink()
    with pytest.raises(assemble.AssembleError, match=r"weights-01\.bin is missing: run python exporter"):
        assemble.assemble(tmp_path)
    shard.write_bytes(b"short")
    with pytest.raises(assemble.AssembleError, match=r"weights-01\.bin has 5 bytes, not 4096"):
        assemble.assemble(tmp_path)
    write(tmp_path / "models/tiny/manifest.json", "{")
    with pytest.raises(ManifestError, match="not JSON"):
        assemble.assemble(tmp_path)
    assert tree(tmp_path / "dist") == before


STEPS = ["_own_files", "_licences", "_model", "_site_json", "_precompressed", "_swap"]


@pytest.mark.parametrize("step", STEPS)
def test_killed_before_a_step_leaves_the_old_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    before = tree(assemble.assemble(checkout(tmp_path)))
    write(tmp_path / "web" / "style.css", "body { color: blue }\n")
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(assemble, step, killed)
        with pytest.raises(KeyboardInterrupt):
            assemble.assemble(tmp_path)
    assert tree(tmp_path / "dist") == before
    after = tree(assemble.assemble(tmp_path))
    assert after["style.css"] == b"body { color: blue }\n"
    assert set(after) == set(before)


def test_killed_between_the_two_renames_is_mended_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist = assemble.assemble(checkout(tmp_path))
    before = tree(dist)
    dist.rename(tmp_path / ".cache" / "site" / "old")  # the state that a kill just there leaves

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vendor, "gather", killed)
        with pytest.raises(KeyboardInterrupt):
            assemble.assemble(tmp_path)
    assert tree(dist) == before
    assemble.assemble(tmp_path)
    assert not (tmp_path / ".cache" / "site" / "old").exists()


def test_an_editor_that_writes_in_place_does_not_reach_a_published_site(tmp_path: Path) -> None:
    dist = assemble.assemble(checkout(tmp_path))
    with (tmp_path / "web" / "index.html").open("r+b") as file:
        file.write(b"XXXX")
    assert (dist / "index.html").read_bytes() == PAGE.encode()


def test_the_command_ends_in_a_sentence() -> None:
    command = [sys.executable, assemble.__file__, "--model", "no-such-model"]
    paths = {**os.environ, "PYTHONPATH": str(assemble.ROOT / "web")}  # as pip install --editable sets it up
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=paths)
    assert done.returncode == 1
    assert done.stderr.startswith("assemble: models/no-such-model/manifest.json does not exist")
    assert "Traceback" not in done.stderr
