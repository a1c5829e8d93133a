"""The stages of an export, in order: read, quantize, convert, write the graphs, verify, describe."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

import torch

from exporter import graph, verify
from exporter.blocks import BLOCK_SIZE, Blocks
from exporter.checkpoint import Checkpoint
from exporter.convert import TOP_K, convert
from exporter.errors import ExportError
from exporter.fetch import sha256
from exporter.plan import write as write_plan
from exporter.plan_tensors import PlanError
from exporter.progress import stage
from exporter.quantize import quantize
from exporter.skeleton import whole_model
from exporter.substitute import substitute
from handbill.manifest import Architecture, File, KVLayout, Licence, Manifest, Quantization, Verification

MAX_CONTEXT = 8192
"""Tokens of context that a page offers at most: rotary tables and a KV cache past this outgrow a tab."""


def build(checkpoint: Checkpoint, folder: Path) -> Manifest:
    """Run every stage into ``folder``, an empty one; the manifest is returned and not yet written.

    Raises ExportError where the model cannot be expressed or the gate fails.
    """
    with stage("Reading weights", 1, "file"):
        model = whole_model(checkpoint.config, checkpoint.weights)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _require_space(folder, parameters)
    config = model.config.get_text_config()
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    architecture = Architecture(
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=head_dim,
        vocabulary=config.vocab_size,
        context=min(config.max_position_embeddings, MAX_CONTEXT),
        parameters=parameters,
    )
    kv = KVLayout("float32", architecture.layers, architecture.kv_heads, head_dim)
    ids = checkpoint.tokenizer.encode(verify.TEXT.read_text("utf-8")).ids
    ids = ids[: min(verify.TEXT_TOKENS, architecture.context)]
    gate_ids = ids[: verify.GATE_TOKENS]

    source = verify.perplexity(verify.eager_logits(model, ids), ids)
    blocks = quantize(model, checkpoint.weights)
    quantization = _describe(blocks, embedding=_embedding_name(model))
    reference = verify.eager_logits(model, gate_ids)
    with torch.no_grad():
        substituted = substitute(model, blocks, architecture.context)
    print("Converting with Optimum", flush=True)
    traced = convert(substituted, architecture.kv_heads, head_dim, folder / "traced")
    del model, substituted

    graphs, shards = _write_graphs(traced, folder)
    shutil.rmtree(folder / "traced")
    verification = _verify(folder, graphs, kv, gate_ids, ids, reference, source)
    plan = ""
    try:
        write_plan(folder / "model.onnx", folder / "plan.json")
        plan = "plan.json"
    except PlanError as error:
        print(error)
    checkpoint.tokenizer.save(str(folder / "tokenizer.json"))
    if checkpoint.licence_text:
        (folder / "LICENSE").write_text(checkpoint.licence_text, encoding="utf-8")
    return Manifest(
        slug=checkpoint.slug,
        title=checkpoint.title,
        source=checkpoint.source,
        licence=Licence(checkpoint.licence, "LICENSE" if checkpoint.licence_text else ""),
        architecture=architecture,
        kv=kv,
        quantization=quantization,
        generation=checkpoint.generation,
        verification=verification,
        graphs=graphs,
        weights=[shard.name for shard in shards],
        tokenizer="tokenizer.json",
        eos_ids=checkpoint.eos_ids,
        bos_token=checkpoint.bos_token,
        eos_token=checkpoint.eos_token,
        chat_template=checkpoint.chat_template,
        files=[File(path.name, path.stat().st_size, sha256(path)) for path in sorted(folder.iterdir())],
        tools={
            tool: importlib.metadata.version(tool)
            for tool in ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "tokenizers")
        },
        plan=plan,
        top_k=min(TOP_K, architecture.vocabulary),
    )


def _require_space(folder: Path, parameters: int) -> None:
    """Refuse before the work: for a moment traced graph and shards both exist, at about a byte a weight each."""
    needed, free = 2 * parameters, shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, and this export needs about {needed / 1e9:.1f} GB; "
            "free some space or use --output on another disk."
        )


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


def _write_graphs(traced: Path, folder: Path) -> tuple[dict[str, str], list[Path]]:
    """model.onnx (and model-webgpu.onnx where WebGPU needs another form) over one set of shards; accuracy_level 0."""
    data = traced.with_name("model.onnx_data")
    model = graph.load(traced)
    graph.tidy(model)
    graph.fuse_residual_norms(model)
    with stage("Writing weights", data.stat().st_size, "B", unit_scale=True) as bar:
        shards = graph.shard(model, data, folder, bar.update)
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
) -> Verification:
    """Gate every graph, set it to the accuracy_level that ships, and measure that."""
    names = sorted(set(graphs.values()))
    with stage("Verifying", len(names) * 3 * len(gate_ids) + len(ids), "tokens") as bar:
        found = [verify.compare(folder / name, kv, reference, gate_ids, bar.update) for name in names]
        for name in names:
            model = graph.load(folder / name)
            graph.set_accuracy_level(model, 4)
            (folder / name).write_bytes(model.SerializeToString())
        shipped = verify.graph_perplexity(folder / graphs["webgpu"], kv, ids, bar.update)
    return Verification(
        prefill=max(each.prefill for each in found),
        chunked=max(each.chunked for each in found),
        decode=max(each.decode for each in found),
        tokens=len(gate_ids),
        text=f"{verify.TEXT.name}, {len(ids)} tokens",
        perplexity_source=source,
        perplexity_shipped=shipped,
        perplexity_ratio=shipped / source,
    )
