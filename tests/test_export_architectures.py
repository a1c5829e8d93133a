"""Every structure of a recipe goes through the whole exporter, on a tiny model that has it.

`python tests/test_export_architectures.py NAME PARAMETERS` writes a recipe's golden file: the published number of its
parameters, which nothing here computes, and what the graph of its structure consists of.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_checkpoint
import tiny_exports
from exporter.blocks import round_to_nearest
from exporter.export import export
from exporter.graph import attributes, load
from exporter.native import NativeSession
from exporter.recipes import RECIPES
from exporter.verify import ALONE, TOLERANCE
from handbill.manifest import Manifest

GOLDEN = Path(__file__).with_name("golden") / "graphs"


def described(folder: Path) -> dict[str, Any]:
    """Of an export: each layer's attention, how often each operator occurs, and whether the CPU kernels take it."""
    model = load(folder / "model.onnx")
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    layers = []
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            settings = attributes(node)
            table = shapes.get(node.input[7], ["gathered"]) if settings["do_rotary"] else [0]
            layers.append(
                {
                    "heads": f"{settings['num_heads']}:{settings['kv_num_heads']}",
                    "scale": round(settings["scale"], 6),
                    "window": settings["local_window_size"],
                    "softcap": settings["softcap"],
                    "rotary": table[-1],
                }
            )
    operators = Counter(node.op_type for node in model.graph.node)
    return {"layers": layers, "operators": dict(sorted(operators.items())), "plan": (folder / "plan.json").is_file()}


@pytest.mark.parametrize("name", tiny_checkpoint.configs())
def test_agrees_with_eager_torch(name: str) -> None:
    """verify runs inside export: prefill, chunks and cached decode over 256 tokens, past every window and switch."""
    folder = tiny_exports.exported(name)
    manifest = Manifest.from_json((folder / "manifest.json").read_text("utf-8"))
    measured = manifest.verification
    assert measured.tokens == 256 > max(tiny_checkpoint.WINDOW, tiny_checkpoint.SWITCH)
    assert ALONE == 64
    assert max(measured.prefill, measured.chunked, measured.decode) <= TOLERANCE
    assert manifest.architecture.context == tiny_checkpoint.CONTEXT
    assert manifest.chat_template == tiny_checkpoint.TEMPLATE
    assert manifest.eos_ids == [2]
    model = load(folder / manifest.graphs["wasm"])
    assert not {"MatMul", "Softmax", "Where", "Cos", "Sin"} & {node.op_type for node in model.graph.node}
    assert {attributes(node)["accuracy_level"] for node in model.graph.node if node.op_type == "MatMulNBits"} == {4}


@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES])
def test_graph_is_the_golden_one(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    if golden["structure"] == name:
        assert described(tiny_exports.exported(name)) == golden["graph"]
    else:
        assert tiny_checkpoint.structure_of(name) == golden["structure"]


def rounded(name: str) -> Any:
    """Eager torch with the weights that the export of ``name`` stands for."""
    model = tiny_checkpoint.model(name)
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    with torch.no_grad():
        for module in model.modules():
            tied = module is tables[1] and module.weight is tables[0].weight
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) and not tied:
                bits = 8 if module in tables else 4
                module.weight.copy_(round_to_nearest(module.weight, bits).dequantize())
    return model


@pytest.mark.parametrize("name", ["phi-3.5-mini", "phi-4-mini"])
def test_longrope_turns_to_the_long_table_as_torch_does_with_a_cache(name: str) -> None:
    """From below the switch to past it: keys cached before keep the short rotation, in torch and in the graph."""
    folder = tiny_exports.exact(name)
    model = rounded(name)
    ids = list(range(3, 3 + tiny_checkpoint.SWITCH + 40))
    session = NativeSession.open(folder)
    steps = [ids[:50], ids[50:57], *([token] for token in ids[57:])]
    cache = None
    for step in steps:
        with torch.no_grad():
            output = model(torch.tensor([step]), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        ours = session.logits(step, len(step))
        assert np.abs(ours - output.logits[0].numpy()).max() <= TOLERANCE
    with torch.no_grad():
        anew = model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
    assert np.abs(ours[-1] - anew).max() > 100 * TOLERANCE, "the switch would not show here"


def test_longrope_below_its_switch_has_one_table(tmp_path: Path) -> None:
    """What a page gets by default: no conversation crosses the switch, and our CPU kernels take the graph."""
    folder = tiny_checkpoint.save("phi-3.5-mini", tmp_path / "tiny")
    target = export(str(folder), tmp_path / "models", tmp_path / "cache", quant="rtn")
    manifest = Manifest.from_json((target / "manifest.json").read_text("utf-8"))
    assert manifest.architecture.context == tiny_checkpoint.SWITCH
    assert manifest.plan == "plan.json"
    assert {layer["rotary"] for layer in described(target)["layers"]} == {48 // 2}


def test_gemma_keeps_one_embedding() -> None:
    """The code path of `gemma-2b`: head_dim 256, one KV head, tied embedding stored once."""
    graph = load(tiny_exports.exported("gemma") / "model.onnx").graph
    shared = [t for t in graph.initializer if t.name.endswith("codes") or "Reshape" in t.name]
    places = [
        tuple((e.key, e.value) for e in t.external_data) for t in shared if t.dims[0] == tiny_checkpoint.VOCABULARY
    ]
    assert len(places) == 2 and len(set(places)) == 1


@pytest.mark.parametrize("name", tiny_checkpoint.configs())
def test_only_asked_positions_reach_lm_head(name: str) -> None:
    """In every graph: what is multiplied with lm_head comes out of the Gather by ``positions``."""
    folder = tiny_exports.exported(name)
    manifest = Manifest.from_json((folder / "manifest.json").read_text("utf-8"))
    for file in set(manifest.graphs.values()):
        producers = {output: node for node in load(folder / file).graph.node for output in node.output}
        node, passed = producers["logits"], []
        while node.op_type != "Gather" or node.input[1] != "positions":
            passed.append(node.op_type)
            node = producers[node.input[0]]
        assert passed.count("MatMulNBits") == 1


def write(name: str, parameters: int) -> None:
    structure = tiny_checkpoint.structure_of(name)
    golden = {"parameters": parameters, "structure": structure}
    if structure == name:
        golden["graph"] = described(tiny_exports.exported(name))
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / f"{name}.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]))
