"""The manifest is read strictly: whatever is unknown, missing, of the wrong type or absurd ends in a sentence."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import real_model
from handbill.manifest import FORMAT, MAX_FILE_BYTES, Adapter, File, Licence, Manifest, ManifestError, Source
from samples import make_manifest


def as_data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(make_manifest().to_json())
    return data


def at(data: Any, path: str) -> tuple[Any, Any]:
    """(container, key) of a dotted path such as files.0.name."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        data = data[part]
    return data, last


def refused(data: Any, words: str) -> None:
    text = data if isinstance(data, str) else json.dumps(data)
    with pytest.raises(ManifestError, match=words) as failure:
        Manifest.from_json(text)
    assert str(failure.value).endswith((".", "Handbill."))


def all_paths(data: Any, prefix: str = "") -> list[str]:
    """Every leaf and branch of ``data`` as a dotted path."""
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = [(str(i), item) for i, item in enumerate(data)]
    else:
        return []
    return [path for key, item in items for path in (f"{prefix}{key}", *all_paths(item, f"{prefix}{key}."))]


def test_a_manifest_survives_the_round_trip() -> None:
    manifest = make_manifest(title="Größe ½ 😀", chat_template="{{ '<&>' }}\n\t")
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text).to_json() == text
    assert text.endswith("}\n") and "Größe" in text
    assert list(json.loads(text)) == sorted(json.loads(text))


@given(st.text(), st.text(), st.lists(st.integers(0, 1 << 40), min_size=1), st.floats(allow_nan=False))
def test_any_text_and_number_survives(title: str, template: str, eos_ids: list[int], figure: float) -> None:
    quantization = dataclasses.replace(make_manifest().quantization, bits_per_weight=figure)
    manifest = make_manifest(title=title, chat_template=template, eos_ids=eos_ids, quantization=quantization)
    assert Manifest.from_json(manifest.to_json()) == manifest


def with_adapters(**changes: Any) -> Manifest:
    adapter = Adapter(
        name="legal",
        title="Legal",
        file="adapter-legal.safetensors",
        rank=4,
        source=Source("folder", "legal", "0" * 64),
        licence=Licence("mit", "adapter-legal-LICENSE"),
        difference=1e-6,
    )
    files = [File(name, 10, "0" * 64) for name in (adapter.file, adapter.licence.file)]
    other = dataclasses.replace(adapter, **({"name": "notes", "title": "Notes"} | changes))
    return make_manifest(adapters=[adapter, other], files=[*make_manifest().files, *files], format=FORMAT)


def test_adapters_are_of_a_format_of_their_own() -> None:
    manifest = with_adapters()
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert json.loads(manifest.to_json())["format"] == 3
    plain = json.loads(make_manifest().to_json())
    assert "adapters" not in plain and plain["format"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "legal"}, "adapters without names of their own"),
        ({"name": ""}, "adapters without names of their own"),
        ({"rank": 0}, "rank below 1"),
        ({"file": "adapter-notes.safetensors"}, "does not list adapter-notes.safetensors"),
        ({"licence": Licence("mit", "gone")}, "does not list gone"),
    ],
)
def test_adapters_that_cannot_be_told_apart_or_read_are_refused(changes: dict[str, Any], words: str) -> None:
    refused(json.loads(with_adapters(**changes).to_json()), words)


def test_fields_with_a_default_may_be_left_out() -> None:
    data = as_data()
    for key in ("plan", "format", "top_k"):
        del data[key]
    del data["kv"]["past"], data["licence"]["file"], data["generation"]["top_p"]
    assert Manifest.from_json(json.dumps(data)) == make_manifest(
        plan="", licence=dataclasses.replace(make_manifest().licence, file="")
    )


@pytest.mark.parametrize("path", ["", "source.", "files.2.", "kv.", "verification."])
def test_an_unknown_key_is_refused(path: str) -> None:
    data = as_data()
    container, key = at(data, f"{path}surprise")
    container[key] = 1
    refused(data, "unknown key 'surprise'")


@pytest.mark.parametrize(
    "path", ["slug", "files", "eos_ids", "source.revision", "architecture.kv_heads", "files.0.sha256"]
)
def test_a_missing_key_is_refused(path: str) -> None:
    data = as_data()
    container, key = at(data, path)
    del container[key]
    refused(data, f"lacks the key '{key}'")


@pytest.mark.parametrize("path", all_paths(as_data()))
@pytest.mark.parametrize("wrong", [None, True, {"x": {}}, [[1]]], ids=str)
def test_a_value_of_the_wrong_type_is_refused(path: str, wrong: Any) -> None:
    data = as_data()
    container, key = at(data, path)
    container[key] = wrong
    refused(data, "manifest")


@pytest.mark.parametrize("path", ["architecture.layers", "files.0.bytes", "eos_ids.0", "format"])
@pytest.mark.parametrize("wrong", ["3", 3.0])
def test_a_whole_number_must_be_one(path: str, wrong: Any) -> None:
    data = as_data()
    container, key = at(data, path)
    container[key] = wrong
    refused(data, "should be int")


def test_a_whole_number_may_stand_for_a_float() -> None:
    data = as_data()
    data["generation"]["temperature"] = 1
    temperature = Manifest.from_json(json.dumps(data)).generation.temperature
    assert temperature == 1 and isinstance(temperature, float)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "3", '"x"', "{", '{"slug": }', "\x00", "[" * 100_000, '{"a":' * 100_000],
    ids=lambda t: t[:9],
)
def test_what_is_no_manifest_is_refused(text: str) -> None:
    refused(text, "manifest")


def test_a_number_too_large_for_a_float_is_refused() -> None:
    text = make_manifest().to_json().replace('"temperature": 0.7', '"temperature": 1' + "0" * 400)
    refused(text, "temperature should be float")


@pytest.mark.parametrize("format", [FORMAT + 1, 10**9])
def test_a_newer_format_is_refused_by_number_whatever_else_it_holds(format: int) -> None:
    refused({"format": format, "new": "things"}, f"format {format}, newer than {FORMAT}: update Handbill")


TRICKS = [
    "../x",
    "..",
    ".",
    ".hidden",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "C:x",
    "a\n",
    "a\x00b",
    "",
    " a",
    "a b",
    "é",
    "a" * 129,
]
TRICKS += ["%2e%2e", "a?b", "a#b", "http://x"]


@pytest.mark.parametrize("name", TRICKS)
def test_a_file_name_with_a_path_in_it_is_refused(name: str) -> None:
    data = as_data()
    data["files"][0]["name"] = name
    refused(data, "not a plain file name|does not list")
    data = as_data()
    data["tokenizer"] = name
    refused(data, "does not list")
    data = as_data()
    data["slug"] = name
    refused(data, "not a plain name")


@pytest.mark.parametrize("size", [0, -1, MAX_FILE_BYTES + 1, 1 << 70])
def test_an_absurd_size_is_refused(size: int) -> None:
    data = as_data()
    data["files"][2]["bytes"] = size
    refused(data, f"impossible size of {size} bytes")


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n"])
def test_a_hash_that_is_none_is_refused(sha256: str) -> None:
    data = as_data()
    data["files"][1]["sha256"] = sha256
    refused(data, "64 hexadecimal digits")


@pytest.mark.parametrize("key", ["layers", "kv_heads", "head_dim", "vocabulary", "context"])
def test_a_shape_below_one_is_refused(key: str) -> None:
    data = as_data()
    data["architecture"][key] = 0
    refused(data, "size below 1")


@pytest.mark.parametrize(
    ("path", "value"),
    [("graphs", {"wasm": "other.onnx"}), ("weights", ["weights-07.bin"]), ("plan", "p.json"), ("licence.file", "L")],
)
def test_a_file_that_is_not_listed_is_refused(path: str, value: Any) -> None:
    data = as_data()
    container, key = at(data, path)
    container[key] = value
    refused(data, "does not list")


@pytest.mark.parametrize(("key", "value"), [("graphs", {}), ("weights", [])])
def test_a_model_without_graph_or_weights_is_refused(key: str, value: Any) -> None:
    data = as_data()
    data[key] = value
    refused(data, "no graph or no weights")


def test_a_file_is_found_by_its_name() -> None:
    assert make_manifest().file("tokenizer.json").bytes == 13
    with pytest.raises(ManifestError, match=r"tiny-1m does not list nothing\.json"):
        make_manifest().file("nothing.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(all_paths(as_data())), JSON)
def test_no_change_of_one_value_escapes_as_another_error(path: str, value: Any) -> None:
    data = as_data()
    container, key = at(data, path)
    container[key] = value
    try:
        Manifest.from_json(json.dumps(data))
    except ManifestError as error:
        assert len(str(error)) > 20


@pytest.mark.model
def test_the_exports_manifest_is_whole() -> None:
    manifest = real_model.manifest()
    for entry in manifest.files:
        assert (real_model.FOLDER / entry.name).stat().st_size == entry.bytes
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_check_with_fewer_logits_than_candidates_is_refused() -> None:
    data = as_data()
    data["check"] = {"ids": [1, 2], "candidates": [7, 8], "logits": [0.5]}
    refused(data, "candidates without logits")
    data["check"]["logits"].append(0.25)
    assert Manifest.from_json(json.dumps(data)).check.candidates == [7, 8]
