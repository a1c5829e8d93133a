"""Adapters beside the weights: the exported graph with one switched on against eager torch with PEFT's arithmetic."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_checkpoint
from exporter import adapter, branches
from exporter import export as command
from exporter.certificate import Demands
from exporter.checkpoint import open_checkpoint
from exporter.errors import ExportError
from exporter.estimate import RUNTIME, adapter_bytes, estimate
from exporter.native import Floats, NativeSession
from exporter.pipeline import build
from exporter.quantize import Choice
from exporter.skeleton import whole_model
from exporter.store import Store
from handbill.manifest import FORMAT, NAME, Manifest
from handbill.session import SessionError
from tiny_adapter import RANK, beside, save
from tiny_exports import compute_exactly

IDS = list(range(3, 60))
TARGETS = {
    "legal": ("q_proj", "v_proj", "down_proj"),  # of the stacked q, k and v all but one
    "case-notes": ("k_proj", "o_proj", "gate_proj", "up_proj"),
}
SCALING = {"legal": 4.0, "case-notes": 0.5}
STRUCTURES = ("llama", "qwen3-0.6b", "gemma2")  # stacked q, k and v; a norm between, tied; soft-capping, a window


class Made:
    """One export with two adapters, all of it float32, and its quantized weights in eager torch."""

    def __init__(self, structure: str, home: Path) -> None:
        self.structure = structure
        self.source = tiny_checkpoint.save(structure, home / "tiny")
        model = tiny_checkpoint.model(structure)
        self.adapters = {
            "legal": save(home / "legal", 0, model=model, targets=TARGETS["legal"]),
            "case-notes": save(home / "n", 1, model=model, targets=TARGETS["case-notes"], lora_alpha=2),
        }
        (self.adapters["legal"] / "README.md").write_text("---\nlicense: mit\n---\n", "utf-8")
        (self.adapters["legal"] / "LICENSE").write_text("Do as you like.\n", "utf-8")
        self.argument = f"{self.adapters['legal']},Case Notes={self.adapters['case-notes']}"
        checkpoint = open_checkpoint(str(self.source), home)
        choice, tokens = Choice("rtn"), tiny_checkpoint.CONTEXT
        partial = home / "partial"
        self.manifest, self.folder = build(
            checkpoint, choice, Demands(), tokens, partial, branches.parse(self.argument)
        )
        (self.folder / NAME).write_text(self.manifest.to_json(), "utf-8")
        compute_exactly(self.folder)
        self.weights, self.blocks = checkpoint.weights, Store(partial / "quantized")

    @torch.no_grad()
    def torch(self, adapter: str) -> Floats:
        """Logits of eager torch in float64 with ``adapter``, "" for none."""
        model = whole_model(tiny_checkpoint.config(self.structure), self.weights)
        for name, parameter in model.named_parameters():
            if name in self.blocks:
                parameter.copy_(self.blocks.read(name).dequantize())
        folders = [(self.adapters[adapter], 1.0, SCALING[adapter])] if adapter else []
        return beside(folders, torch.tensor([IDS]), model)[0].numpy()


@pytest.fixture(scope="module", params=STRUCTURES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp(request.param))


def switch(session: NativeSession, name: str) -> None:
    asyncio.run(session.adapter(name))


def read(session: NativeSession) -> Floats:
    """Logits at every position: 40 tokens at once, then the others in steps of one and of several."""
    ends = [0, 40, 41, 42, 50, len(IDS)]
    parts = [IDS[start:end] for start, end in itertools.pairwise(ends)]
    return np.concatenate([session.logits(part, len(part)) for part in parts])


def test_native_computes_what_torch_does(made: Made) -> None:
    for graph in made.manifest.graphs:  # Soft-capped attention has none for WebGPU.
        session = NativeSession.open(made.folder, graph=graph)
        logits = {}
        for name in ("", "legal", "case-notes"):
            switch(session, name)
            logits[name] = read(session)
            assert np.abs(logits[name] - made.torch(name)).max() < 1e-4, graph
        for name in SCALING:
            assert np.abs(logits[name] - logits[""]).max() > 0.02, "the adapter should matter"


def test_back_to_the_base_is_bit_for_bit(made: Made) -> None:
    session = NativeSession.open(made.folder)
    before = read(session)
    switch(session, "legal")
    assert session.length == 0
    read(session)
    switch(session, "")
    assert np.array_equal(read(session), before)


def test_an_adapter_that_is_not_there_changes_nothing(made: Made) -> None:
    session = NativeSession.open(made.folder)
    switch(session, "legal")
    first = session.logits(IDS[:5])
    with pytest.raises(SessionError, match="no adapter 'poems'"):
        switch(session, "poems")
    assert session.length == 5
    session.rewind(0)
    assert np.array_equal(session.logits(IDS[:5]), first)


def test_the_manifest_says_what_there_is(made: Made) -> None:
    manifest = Manifest.from_json(made.manifest.to_json())
    legal, notes = manifest.adapters
    assert manifest.format == FORMAT
    assert (legal.name, legal.title, notes.name, notes.title) == ("legal", "legal", "case-notes", "Case Notes")
    assert (legal.licence.name, notes.licence.name, notes.licence.file) == ("mit", "unknown", "")
    assert (made.folder / legal.licence.file).read_text("utf-8") == "Do as you like.\n"
    assert legal.source.revision == hashlib.sha256((made.adapters["legal"] / adapter.TENSORS).read_bytes()).hexdigest()
    for each in manifest.adapters:
        assert each.rank == RANK
        assert 0 < each.difference < 1e-4
        data = (made.folder / each.file).read_bytes()
        assert manifest.file(each.file).sha256 == hashlib.sha256(data).hexdigest()
        assert (made.folder / each.file).stat().st_mode == (made.folder / "plan.json").stat().st_mode


def test_a_plan_counts_the_bytes_of_every_adapter(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    switched = branches.parse(made.argument)
    sizes = adapter_bytes(tiny_checkpoint.config(made.structure), switched)
    assert list(sizes) == ["legal", "Case Notes"]
    for each in switched:
        data = (made.folder / each.file).read_bytes()
        assert len(data) == 8 + int.from_bytes(data[:8], "little") + sizes[each.title]
    alone = estimate(tiny_checkpoint.config(made.structure))
    both = alone.with_adapters(sizes.values())
    assert both.disk - alone.disk == sum(sizes.values()) == (both.memory - alone.memory) // 2
    assert both.page == alone.page
    tokens = alone.fits(10**9)
    room = RUNTIME + alone.shards + tokens * alone.kv_bytes
    assert both.fits(room + 2 * max(sizes.values())) == tokens > both.fits(room + 2 * max(sizes.values()) - 1)
    assert command.main([str(made.source), "--plan", "--adapters", made.argument]) == 0
    kilobytes = [round(each / 1e3) for each in sizes.values()]
    assert (
        "adapters          legal {} kB, Case Notes {} kB; fetched when first chosen".format(*kilobytes)
        in capsys.readouterr().out
    )


def test_a_plan_refuses_an_adapter_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = _lora(tmp_path / "wide", "model.layers.0.self_attn.q_proj", 64, 65)
    source = tiny_checkpoint.save("llama", tmp_path / "tiny")
    assert command.main([str(source), "--plan", "--adapters", str(wide)]) == 1
    assert "wide is for another model: its" in capsys.readouterr().err


def test_a_file_holds_what_its_adapter_adds(made: Made) -> None:
    """A · B of every tensor pair is scaling · B · A of PEFT's, stacked where the graph has q, k and v in one matrix."""
    stored = load_file(made.folder / "adapter-legal.safetensors")
    peft = load_file(made.adapters["legal"] / adapter.TENSORS)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    changes = [
        4 * peft[key.replace("lora_A", "lora_B")] @ tensor for key, tensor in peft.items() if key.endswith("A.weight")
    ]
    wanted = sum(float(change.square().sum()) for change in changes)
    products = [
        stored[key].float() @ stored[key.replace("lora_a", "lora_b")].float() for key in stored if key.endswith("a")
    ]
    assert len(products) == (9 if made.structure == "qwen3-0.6b" else 6)  # which has a norm between
    assert abs(sum(float(product.square().sum()) for product in products) / wanted - 1) < 1e-5


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_without_adapters_nothing_changes(made: Made, tmp_path: Path) -> None:
    """The same weights and tokenizer, and no trace of a branch."""
    assert command.main([str(made.source), "--output", str(tmp_path), "--quant", "rtn", "--context", "512"]) == 0
    manifest = Manifest.from_json((tmp_path / "tiny" / NAME).read_text("utf-8"))
    assert manifest.format == 2
    assert "adapters" not in manifest.to_json()
    for name in (*manifest.weights, "tokenizer.json"):
        assert manifest.file(name) == made.manifest.file(name)
    names = [value.name for value in onnx.load(tmp_path / "tiny" / "model.onnx", load_external_data=False).graph.input]
    assert not [name for name in names if "lora" in name]
    assert "low_rank" not in (tmp_path / "tiny" / "plan.json").read_text("utf-8")


def test_a_wrong_branch_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gate runs with each adapter: a file that lost the scaling does not pass."""
    source = tiny_checkpoint.save("llama", tmp_path / "tiny")
    folder = save(tmp_path / "legal")
    original = branches.save
    monkeypatch.setattr(
        branches, "save", lambda tensors: original({name: tensor * 0.9 for name, tensor in tensors.items()})
    )
    assert command.main([str(source), "--output", str(tmp_path / "models"), "--adapters", str(folder)]) == 1
    assert "model.onnx with adapter-legal.safetensors differs from eager torch" in capsys.readouterr().err
    assert list((tmp_path / "models").iterdir()) == []


def _lora(folder: Path, name: str, rows: int, columns: int, kind: str = "lora_") -> Path:
    save(folder)
    key = f"base_model.model.{name}.{kind}"
    end = "" if "embedding" in kind else ".weight"
    tensors = {f"{key}A{end}": torch.ones(RANK, columns), f"{key}B{end}": torch.ones(rows, RANK)}
    save_file(tensors, folder / adapter.TENSORS)
    return folder


def test_what_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is quantized, in one sentence."""
    monkeypatch.setattr("exporter.pipeline.Stages", None)
    source = tiny_checkpoint.save("llama", tmp_path / "tiny")
    deep = "model.layers.0.self_attn"
    cases = {
        str(_lora(tmp_path / "head", "lm_head", 512, 64)): "head changes lm_head.weight, which is the embedding",
        str(_lora(tmp_path / "table", "model.embed_tokens", 64, 512, "lora_embedding_")): "which is the embedding",
        str(_lora(tmp_path / "other", f"{deep}.w_pack", 64, 64)): f"another model: this one has no {deep}.w_pack",
        str(_lora(tmp_path / "wide", f"{deep}.q_proj", 64, 65)): "wide is for another model: its",
        str(_lora(tmp_path / "huge", f"{deep}.q_proj", 64, 64)) + ",": "'' is no PATH",
        f"{tmp_path / 'wide'},wide={tmp_path / 'wide'}": "Two adapters are called wide",
        f"={tmp_path / 'wide'}": "is no PATH and no NAME=PATH",
        str(tmp_path): "has no adapter_config.json",
    }
    for argument, says in cases.items():
        assert command.main([str(source), "--output", str(tmp_path / "models"), "--adapters", argument]) == 1
        assert says in capsys.readouterr().err
    awq = [str(source), "--output", str(tmp_path / "models"), "--quant", "awq", "--adapters", str(tmp_path / "wide")]
    assert command.main(awq) == 1
    assert "AWQ scales the channels" in capsys.readouterr().err


def test_values_past_half_precision_are_refused(tmp_path: Path) -> None:
    folder = _lora(tmp_path / "huge", "x", 4, 4)
    tensors = load_file(folder / adapter.TENSORS)
    save_file({name: tensor * 1e5 for name, tensor in tensors.items()}, folder / adapter.TENSORS)
    with pytest.raises(ExportError, match=r"x.weight holds values past float16's range"):
        branches.parse(str(folder))
