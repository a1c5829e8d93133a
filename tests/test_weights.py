"""Weights read one at a time are the model's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_checkpoint
from exporter.checkpoint import open_checkpoint
from exporter.errors import ExportError
from exporter.skeleton import matrices, skeleton, whole_model
from exporter.weights import PIECE, Matrix, Safetensors


@pytest.mark.parametrize("name", ["tinyllama-1.1b-chat", "gemma-3-270m", "qwen2.5-0.5b"])
def test_the_whole_model_is_the_one_that_was_saved(name: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint.save(name, tmp_path / "tiny")
    checkpoint = open_checkpoint(str(folder), tmp_path)
    ids = torch.arange(1, 90)[None]
    with torch.no_grad():
        ours = whole_model(checkpoint.config, checkpoint.weights)(ids).logits
        assert torch.equal(ours, tiny_checkpoint.model(name)(ids).logits)


def test_a_skeleton_holds_no_matrix(tmp_path: Path) -> None:
    folder = tiny_checkpoint.save("llama", tmp_path / "tiny")
    checkpoint = open_checkpoint(str(folder), tmp_path)
    model = skeleton(checkpoint.config, checkpoint.weights)
    on_meta = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    found = matrices(model, checkpoint.weights)
    assert {matrix.name for matrix in found} == on_meta
    assert len(found) == 3 * 7 + 1
    assert [matrix.name for matrix in found if matrix.is_table] == ["model.embed_tokens.weight"]
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_shards_half_precision_and_a_lost_prefix(tmp_path: Path) -> None:
    """Two files by an index beside one that it does not name, bfloat16, and a base model saved without its head."""
    folder = tiny_checkpoint.save("llama", tmp_path / "tiny")
    state = {name.removeprefix("model."): tensor.bfloat16() for name, tensor in
             load_file(folder / "model.safetensors").items()}  # fmt: skip
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    save_file({name: torch.zeros(1) for name in names}, folder / "consolidated.safetensors")
    listed = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed), "utf-8")
    weights = Safetensors(folder)
    for name, tensor in state.items():
        assert weights.shape(f"model.{name}") == tuple(tensor.shape)
        assert torch.equal(weights.read(f"model.{name}"), tensor.float())
        assert torch.equal(weights.read(f"model.{name}", 5, 11), tensor[5:11].float())


def test_pieces_cover_every_row_once() -> None:
    rows = 3 * PIECE // 1000 + 7
    pieces = list(Matrix("m", rows, 1000, False, None).pieces())  # type: ignore[arg-type]
    assert len(pieces) == 4
    assert [row for piece in pieces for row in range(rows)[piece]] == list(range(rows))
    assert len(list(Matrix("m", 3, 2 * PIECE, False, None).pieces())) == 3  # type: ignore[arg-type]
    small = list(Matrix("m", 10, 32, False, None).pieces())  # type: ignore[arg-type]
    assert small == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]


def test_what_is_damaged_is_said(tmp_path: Path) -> None:
    folder = tiny_checkpoint.save("llama", tmp_path / "tiny")
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({name: tensor for name, tensor in state.items() if "layers.1.mlp.up" not in name}, path)
    checkpoint = open_checkpoint(str(folder), tmp_path)
    with pytest.raises(ExportError, match=r"no tensor for model.layers.1.mlp.up_proj.weight"):
        skeleton(checkpoint.config, checkpoint.weights)
    save_file(state | {"model.norm.weight": torch.ones(63)}, path)
    checkpoint = open_checkpoint(str(folder), tmp_path)
    with pytest.raises(ExportError, match=r"model.norm.weight is \(63,\), but the config says \(64,\)"):
        skeleton(checkpoint.config, checkpoint.weights)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ExportError, match=r"model.safetensors is damaged or was not downloaded whole"):
        open_checkpoint(str(folder), tmp_path)


def with_more(folder: Path, more: dict[str, torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | more, path)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["layers.1.mlp.up_proj.weight_scale_inv"], r"up_proj.weight_scale_inv, which a model of its config"),
        (["layers.0.self_attn.q_norm.weight", "layers.1.self_attn.q_norm.weight"], r"q_norm.weight and 1 more, which"),
    ],
)
def test_what_no_parameter_is_read_from_is_refused(names: list[str], says: str, tmp_path: Path) -> None:
    """Left out, it would make another model: one without scales, or norms."""
    folder = tiny_checkpoint.save("llama", tmp_path / "tiny")
    with_more(folder, {f"model.{name}": torch.ones(64) for name in names})
    with pytest.raises(ExportError, match=says):
        skeleton(tiny_checkpoint.config("llama"), Safetensors(folder))


def test_what_models_compute_themselves_may_be_stored(tmp_path: Path) -> None:
    """Rotary frequencies, as older versions of transformers saved them, and a tied lm_head."""
    folder = tiny_checkpoint.save("llama", tmp_path / "tiny")
    names = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(3)]
    with_more(folder, {"lm_head.weight": torch.ones(512, 64)} | {name: torch.ones(8) for name in names})
    skeleton(tiny_checkpoint.config("llama"), Safetensors(folder))


@pytest.mark.parametrize(("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_codes_are_not_taken_for_weights(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint.save("llama", tmp_path / "tiny")
    with_more(folder, {"model.layers.0.mlp.up_proj.weight": torch.ones(96, 64).to(dtype)})
    with pytest.raises(ExportError, match=f"stores model.layers.0.mlp.up_proj.weight as {name}: weights that are alr"):
        skeleton(tiny_checkpoint.config("llama"), Safetensors(folder))
