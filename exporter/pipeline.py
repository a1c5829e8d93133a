"""The stages of an export, in order: read, quantize, convert, write the graphs, verify, describe."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter import graph, verify
from exporter.blocks import BLOCK_SIZE, Blocks
from exporter.checkpoint import Checkpoint
from exporter.context import head_dim, kv_heads
from exporter.convert import TOP_K, convert
from exporter.errors import ExportError
from exporter.fetch import sha256
from exporter.plan import write as write_plan
from exporter.plan_tensors import PlanError
from exporter.progress import stage
from exporter.quantize import choose
from exporter.skeleton import matrices, skeleton
from exporter.stages import Stages
from exporter.store import Store
from exporter.streamed import stream
from exporter.substitute import substitute
from exporter.weights import Matrix, Weights
from handbill.manifest import Architecture, File, KVLayout, Licence, Manifest, Quantization, Verification

MARGIN = 100_000_000
"""Bytes beside weights and logits, at most: rotary tables, graphs, tokenizer."""


def build(checkpoint: Checkpoint, folder: Path, context: int) -> tuple[Manifest, Path]:
    """Run every stage that has not been run in ``folder``; the manifest, not yet written, and the folder it describes.

    The page will offer ``context`` tokens.

    Raises ExportError where the disk has no room, the model cannot be expressed or the gate fails.
    """
    weights = checkpoint.weights
    model = skeleton(checkpoint.config, weights)
    architecture = _architecture(model, context)
    tokens = verify.tokens(architecture.parameters)
    _require_space(folder, matrices(model, weights), tokens.text * architecture.vocabulary)
    if tokens.text < verify.TEXT_TOKENS:
        print(
            f"{architecture.parameters / 1e9:.1f} billion parameters: perplexity is measured on {tokens.text} tokens "
            f"(not {verify.TEXT_TOKENS}), and {tokens.gate} (not {verify.GATE_TOKENS}) go through the gate."
        )
    ids = checkpoint.tokenizer.encode(verify.TEXT.read_text("utf-8")).ids
    ids = ids[: min(tokens.text, architecture.context)]
    gate_ids = ids[: tokens.gate]

    stages = Stages(folder, _key(checkpoint, context))
    quantized = stages.run("quantized", lambda out: _quantize(model, weights, ids, len(gate_ids), out))
    converted = stages.run(
        "converted",  # a model of its own, which takes the Blocks that it maps along when it goes
        lambda out: _convert(skeleton(checkpoint.config, weights), Store(folder / "quantized"), architecture, out),
    )
    whole = folder / "converted"
    kv = KVLayout("float32", architecture.layers, architecture.kv_heads, architecture.head_dim)
    reference = np.load(folder / "quantized" / "reference.npy")
    verified = stages.run(
        "verified", lambda _: _verify(whole, converted["graphs"], kv, gate_ids, ids, reference, quantized["source"])
    )
    plan = _write_plan(whole)
    checkpoint.tokenizer.save(str(whole / "tokenizer.json"))
    if checkpoint.licence_text:
        (whole / "LICENSE").write_text(checkpoint.licence_text, encoding="utf-8")
    return Manifest(
        slug=checkpoint.slug,
        title=checkpoint.title,
        source=checkpoint.source,
        licence=Licence(checkpoint.licence, "LICENSE" if checkpoint.licence_text else ""),
        architecture=architecture,
        kv=kv,
        quantization=Quantization(**quantized["described"]),
        generation=checkpoint.generation,
        verification=Verification(**verified),
        graphs=converted["graphs"],
        weights=converted["shards"],
        tokenizer="tokenizer.json",
        eos_ids=checkpoint.eos_ids,
        bos_token=checkpoint.bos_token,
        eos_token=checkpoint.eos_token,
        chat_template=checkpoint.chat_template,
        files=[File(path.name, path.stat().st_size, sha256(path)) for path in sorted(whole.iterdir())],
        tools=_tools(),
        plan=plan,
        top_k=min(TOP_K, architecture.vocabulary),
        check=verify.device_check(gate_ids, reference),
    ), whole


def _architecture(model: Any, context: int) -> Architecture:
    config = model.config.get_text_config()
    return Architecture(
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=kv_heads(config),
        head_dim=head_dim(config),
        vocabulary=config.vocab_size,
        context=context,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _tools() -> dict[str, str]:
    tools = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "tokenizers")
    return {tool: importlib.metadata.version(tool) for tool in tools}


def _key(checkpoint: Checkpoint, context: int) -> Any:
    """What makes the stages of two runs the same: the weights, the context, the exporter's own code, and its tools."""
    sources = sorted(Path(__file__).parent.glob("*"))
    code = [[path.name, sha256(path)] for path in sources if path.is_file()]
    return [asdict(checkpoint.source), checkpoint.weights.stamp(), checkpoint.config.to_dict(), context, code, _tools()]


def _require_space(folder: Path, found: list[Matrix], logits: int) -> None:
    """Refuse before the work if Blocks, shards and ``logits`` will not fit; what a stopped run left counts as free."""
    bytes_a_weight = {True: 9 / 8, False: 5 / 8}  # a table in 8 bits, the rest in 4, with scales and zero points
    needed = 2 * sum(matrix.rows * matrix.columns * bytes_a_weight[matrix.is_table] for matrix in found)
    needed += 4 * logits + MARGIN
    free = shutil.disk_usage(folder.parent).free + sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if free < needed:
        raise ExportError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, and this export needs about {needed / 1e9:.1f} GB; "
            "free some space or use --output on another disk."
        )


def _quantize(model: Any, weights: Weights, ids: list[int], positions: int, folder: Path) -> Any:
    """Blocks of every matrix, the gate's reference, and both perplexities."""
    store = Store(folder)
    found = stream(model, weights, store, choose, ids, positions)
    np.save(folder / "reference.npy", found.reference)
    described = _describe(store.forms(), embedding=_embedding_name(model))
    return {"source": found.source, "quantized": found.quantized, "described": asdict(described)}


@torch.no_grad()
def _convert(model: Any, store: Store, architecture: Architecture, folder: Path) -> Any:
    """model.onnx (and model-webgpu.onnx where WebGPU needs another form) over one set of shards; accuracy_level 0."""
    blocks = {name: store.read(name) for name in store.forms()}
    substituted = substitute(model, blocks, architecture.context)
    print("Converting with Optimum", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        traced, tensors = convert(substituted, architecture.kv_heads, architecture.head_dim, Path(scratch) / "traced")
        graph_model = graph.load(traced)
    graphs, shards = _write_graphs(graph_model, tensors, folder)
    return {"graphs": graphs, "shards": [shard.name for shard in shards]}


def _write_plan(folder: Path) -> str:
    """The name of the plan that was written, "" (and why is said) where the CPU kernels cannot run this graph."""
    try:
        write_plan(folder / "model.onnx", folder / "plan.json")
    except PlanError as error:
        print(error)
        return ""
    return "plan.json"


def _embedding_name(model: Any) -> str:
    embedding = model.get_input_embeddings()
    return f"{next(name for name, module in model.named_modules() if module is embedding)}.weight"


def _describe(blocks: dict[str, Blocks], embedding: str) -> Quantization:
    stored = sum(part.bytes for part in blocks.values())
    weights = sum(part.rows * part.columns for part in blocks.values())
    methods = sorted({part.method for name, part in blocks.items() if name != embedding})
    return Quantization(
        method="; ".join([*methods, f"embedding: {blocks[embedding].method}"]),
        bits=min(part.bits for part in blocks.values()),
        embedding_bits=blocks[embedding].bits,
        block_size=BLOCK_SIZE,
        bits_per_weight=round(8 * stored / weights, 4),
    )


def _write_graphs(model: Any, tensors: dict[str, Any], folder: Path) -> tuple[dict[str, str], list[Path]]:
    graph.refer(model, tensors)
    graph.tidy(model)
    graph.fuse_residual_norms(model)
    with stage("Writing weights", graph.weight_bytes(model), "B", unit_scale=True) as bar:
        shards = graph.shard(model, tensors, folder, bar.update)
    graphs = {"wasm": "model.onnx", "webgpu": "model.onnx"}
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    print(f"Graph: {len(model.graph.node)} nodes")
    if graph.sum_form(model):
        graphs["webgpu"] = "model-webgpu.onnx"
        (folder / "model-webgpu.onnx").write_bytes(model.SerializeToString())
    return graphs, shards


def _verify(
    folder: Path,
    graphs: dict[str, str],
    kv: KVLayout,
    gate_ids: list[int],
    ids: list[int],
    reference: Any,
    source: float,
) -> Any:
    """Gate every graph, set it to the accuracy_level that ships, and measure that: the fields of a Verification."""
    names = sorted(set(graphs.values()))
    _set_accuracy_level(folder, names, 0)  # a stopped run may have left the one that ships
    with stage("Verifying", len(names) * 3 * len(gate_ids) + len(ids), "tokens") as bar:
        found = [verify.compare(folder / name, kv, reference, gate_ids, bar.update) for name in names]
        _set_accuracy_level(folder, names, 4)
        shipped = verify.graph_perplexity(folder / graphs["webgpu"], kv, ids, bar.update)
    measured = Verification(
        prefill=max(each.prefill for each in found),
        chunked=max(each.chunked for each in found),
        decode=max(each.decode for each in found),
        tokens=len(gate_ids),
        text=f"{verify.TEXT.name}, {len(ids)} tokens",
        perplexity_source=source,
        perplexity_shipped=shipped,
        perplexity_ratio=shipped / source,
    )
    return asdict(measured)


def _set_accuracy_level(folder: Path, names: list[str], level: int) -> None:
    for name in names:
        model = graph.load(folder / name)
        graph.set_accuracy_level(model, level)
        (folder / name).write_bytes(model.SerializeToString())
