"""The stages of an export, in order: read, quantize, convert, write the graphs, verify, describe."""

from __future__ import annotations

import gc
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter import graph, report, verify, webgpu
from exporter.adapter import Adapter
from exporter.agreement import Floats
from exporter.blocks import BLOCK_SIZE, Blocks
from exporter.branches import Branches, Switched, refuse_misfits
from exporter.certificate import Demands, certify, compare_answers, fastest, verify_adapters
from exporter.checkpoint import Checkpoint
from exporter.context import head_dim, kv_heads
from exporter.convert import TOP_K, convert
from exporter.errors import ExportError
from exporter.exact import eager_logits, exact_logits
from exporter.fetch import sha256
from exporter.modules import longrope_switch
from exporter.plan import write as write_plan
from exporter.plan_tensors import PlanError
from exporter.progress import stage
from exporter.quantize import Anew, Choice, Fitting, as_fitted
from exporter.report import Record
from exporter.skeleton import matrices, skeleton
from exporter.stages import Stages
from exporter.store import Store
from exporter.substitute import parameters_behind, substitute
from exporter.weights import Matrix
from handbill.manifest import (
    FORMAT,
    NAME,
    Architecture,
    Check,
    File,
    Greedy,
    KVLayout,
    Licence,
    Manifest,
    Quantization,
    Verification,
)

REFERENCE = "reference.npy"
"""Logits of eager torch with the quantized weights, at the positions that the gate and a device's check look at."""

MARGIN = 100_000_000
"""Bytes beside weights and logits, at most: rotary tables, graphs, tokenizer."""


def build(
    checkpoint: Checkpoint,
    choice: Choice,
    demands: Demands,
    context: int,
    folder: Path,
    switched: Sequence[Switched] = (),
) -> tuple[Manifest, Path]:
    """Run every stage that has not been run in ``folder``; the manifest, not yet written, and the folder it describes.

    The page will offer ``context`` tokens, and the adapters ``switched``.

    Raises ExportError where the disk has no room, an adapter does not fit, the model cannot be expressed or the gate
    fails.
    """
    if switched and choice.method == "awq":
        raise ExportError(
            "AWQ scales the channels that an adapter was trained for; with --adapters use another --quant."
        )
    weights = Anew(checkpoint.weights) if choice.anew else checkpoint.weights
    model = skeleton(checkpoint.config, weights)
    architecture = _architecture(model, context)
    window = int(getattr(checkpoint.config, "sliding_window", None) or 0)
    ids = checkpoint.encode(verify.TEXT.read_text("utf-8"))
    tokens = verify.tokens(architecture.parameters, architecture.vocabulary, window, min(len(ids), context))
    ids = ids[: tokens.text]
    found = matrices(model, weights)
    refuse_misfits(switched, model)
    _require_space(folder, choice, found, tokens.text * architecture.vocabulary)
    if tokens.text < verify.TEXT_TOKENS:
        print(
            f"{architecture.parameters / 1e9:.1f} billion parameters, {context:,} tokens of context: perplexity is "
            f"measured on {tokens.text} tokens (not {verify.TEXT_TOKENS}), and {tokens.gate} go through the gate."
        )
    text = choice.calibration_text(checkpoint.tokenizer, len(ids), checkpoint.beginning)
    stages = Stages(folder, _key(checkpoint, choice, demands, context, switched))
    quantized = stages.run(
        "quantized", lambda out: _quantize(Fitting(choice, checkpoint.config, weights, text), ids, tokens.kept, out)
    )
    references = folder / "quantized"
    converted = stages.run(
        "converted",  # a model of its own, which takes the Blocks that it maps along when it goes
        lambda out: _convert(
            skeleton(checkpoint.config, as_fitted(weights, references)), Store(references), architecture, out, switched
        ),
    )
    gc.collect()  # that model is a circle of references: what it mapped would count beside what onnxruntime maps
    whole = folder / "converted"
    kv = KVLayout("float32", architecture.layers, architecture.kv_heads, architecture.head_dim)
    graphs = converted["graphs"]

    gated = ids[: tokens.gate]

    def over(compute: Callable[..., Floats], adapter: Adapter | None = None) -> Floats:
        fitted = as_fitted(weights, references)
        model = skeleton(
            checkpoint.config, fitted
        )  # anew: converting leaves an earlier one's config with our attention
        return compute(model, fitted, Store(references), gated, tokens.compared, adapter)

    def verified_graphs(_: Path) -> Any:
        checks = verify.Gate(np.load(references / REFERENCE)[-tokens.compared :], gated, partial(over, exact_logits))
        return certify(whole, graphs, kv, ids, quantized, references, checks, demands.gate)

    def verified_adapters(_: Path) -> Any:
        checks = {
            each.file: verify.Gate(over(eager_logits, each.adapter), gated, partial(over, exact_logits, each.adapter))
            for each in switched
        }
        return verify_adapters(whole, graphs, kv, checks)

    verified = stages.run("verified", verified_graphs)
    differences = stages.run("adapted", verified_adapters) if switched else {}
    greedy = Greedy()
    if demands.full:
        greedy = Greedy(**stages.run("answered", lambda _: compare_answers(checkpoint, whole / fastest(graphs), kv)))
    check = Check()
    # Past longrope's switch eager torch turns even a text's first tokens by another table than a page does.
    if not 0 < longrope_switch(checkpoint.config) < tokens.text:
        row = np.load(references / REFERENCE, mmap_mode="r")[tokens.kept.index(tokens.check - 1)]
        check = verify.device_check(ids[: tokens.check], row)
    checkpoint.tokenizer.save(str(whole / "tokenizer.json"))
    for name in (NAME, report.NAME):
        (whole / name).unlink(missing_ok=True)  # of a run that was stopped
    if checkpoint.licence_text:
        (whole / "LICENSE").write_text(checkpoint.licence_text, encoding="utf-8")
    adapters = [each.described(whole, differences[each.file]) for each in switched]
    manifest = Manifest(
        slug=checkpoint.slug,
        title=checkpoint.title,
        source=checkpoint.source,
        licence=Licence(checkpoint.licence, "LICENSE" if checkpoint.licence_text else ""),
        architecture=architecture,
        kv=kv,
        quantization=Quantization(**quantized["described"]),
        generation=checkpoint.generation,
        verification=replace(Verification(**verified), greedy=greedy),
        graphs=graphs,
        weights=converted["shards"],
        tokenizer="tokenizer.json",
        eos_ids=checkpoint.eos_ids,
        bos_token=checkpoint.bos_token,
        eos_token=checkpoint.eos_token,
        chat_template=checkpoint.chat_template,
        files=[_file(path) for path in sorted(whole.iterdir())],
        tools=_tools(),
        plan=converted["plan"],
        top_k=min(TOP_K, architecture.vocabulary),
        check=check,
        adapters=adapters,
        format=FORMAT if adapters else 2,  # which older pages read
    )
    records = [Record(**record) for record in quantized["records"]]
    (whole / report.NAME).write_text(report.render(manifest, records, demands.gate), encoding="utf-8")
    files = [*manifest.files, _file(whole / report.NAME)]
    return replace(manifest, report=report.NAME, files=sorted(files, key=lambda file: file.name)), whole


def _file(path: Path) -> File:
    return File(path.name, path.stat().st_size, sha256(path))


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


def _key(checkpoint: Checkpoint, choice: Choice, demands: Demands, context: int, switched: Sequence[Switched]) -> Any:
    """What makes the stages of two runs the same: the weights, the tokens, what is wanted, our own code, its tools."""
    sources = sorted(Path(__file__).parent.glob("*"))
    code = [[path.name, sha256(path)] for path in sources if path.is_file()]
    wanted = [choice.method, choice.bits, choice.budget, sha256(choice.calibration), demands.gate, context]
    wanted += [each.stamp() for each in switched]
    spoken = [checkpoint.tokenizer.to_str(), checkpoint.chat_template, checkpoint.special_tokens, checkpoint.eos_ids]
    read = [asdict(checkpoint.source), checkpoint.weights.stamp(), checkpoint.config.to_dict(), spoken]
    return [*read, checkpoint.adds_bos, wanted, code, _tools()]


def _require_space(folder: Path, choice: Choice, found: list[Matrix], logits: int) -> None:
    """Refuse before the work if Blocks, shards and ``logits`` will not fit; what a stopped run left counts as free."""
    parameters = sum(matrix.rows * matrix.columns for matrix in found)
    # Scales and zero points take about a bit a weight more; a budget only makes less of it.
    needed = 2 * sum(matrix.rows * matrix.columns * (choice.bits_of(matrix, parameters) + 1) / 8 for matrix in found)
    needed += 4 * logits + MARGIN
    free = shutil.disk_usage(folder.parent).free + sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if free < needed:
        raise ExportError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, and this export needs about {needed / 1e9:.1f} GB; "
            "free some space or use --output on another disk."
        )


def _quantize(fitting: Fitting, ids: list[int], positions: Sequence[int], folder: Path) -> Any:
    """Blocks of every matrix and what they do to predictions; beside them the source's own and the gate's reference."""
    found = fitting.run(ids, positions, folder)
    np.save(folder / REFERENCE, found.reference)
    forms = Store(folder).forms()
    described = _describe(forms, embedding=fitting.embedding)
    records = [
        Record(
            name=matrix.name,
            rows=matrix.rows,
            columns=matrix.columns,
            bits=forms[matrix.name].bits,
            bytes=forms[matrix.name].bytes,
            method=forms[matrix.name].method,
            largest=forms[matrix.name].error,
            relative=found.errors.get(matrix.name, 0.0),
            is_table=matrix.is_table,
        )
        for matrix in fitting.matrices
    ]
    return {
        "source": found.source,
        "quantized": found.quantized.perplexity,
        "described": asdict(described),
        "records": [asdict(record) for record in records],
    }


@torch.no_grad()
def _convert(
    model: Any, store: Store, architecture: Architecture, folder: Path, switched: Sequence[Switched] = ()
) -> Any:
    """model.onnx (and model-webgpu.onnx where WebGPU needs another form) over one set of shards, and their plan.

    With a file for each of ``switched``, where there are any. The graphs are left at accuracy_level 0.
    """
    blocks = {name: store.read(name) for name in store.forms()}
    rows = {name: part.rows for name, part in blocks.items()}
    substituted = substitute(model, blocks, architecture.context)
    print("Converting with Optimum", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        traced, tensors = convert(substituted, architecture.kv_heads, architecture.head_dim, Path(scratch) / "traced")
        graph_model = graph.load(traced)
    behind = parameters_behind(substituted.model)
    return _write_graphs(graph_model, tensors, folder, Branches(behind, rows, switched))


def _write_plan(model: Any, folder: Path, ranks: Mapping[str, int]) -> str:
    """The name of the plan that was written, "" (and why is said) where the CPU kernels cannot run this graph."""
    try:
        write_plan(model, folder / "plan.json", ranks)
    except PlanError as error:
        print(error)
        return ""
    return "plan.json"


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


def _write_graphs(model: Any, tensors: dict[str, Any], folder: Path, branches: Branches) -> Any:
    graph.refer(model, tensors)
    graph.tidy(model)
    graph.fuse_residual_norms(model)
    branches.put(model)
    ranks = branches.write(folder)
    with stage("Writing weights", graph.weight_bytes(model), "B", unit_scale=True) as bar:
        shards = graph.shard(model, tensors, folder, bar.update)
    plan = _write_plan(model, folder, ranks)
    graph.sum_form(model, bits=(8,))  # which no runtime takes with float zero points
    graphs = {"wasm": "model.onnx", "webgpu": "model.onnx"}
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    print(f"Graph: {len(model.graph.node)} nodes")
    if graph.sum_form(model) + webgpu.cap_scores(model) + webgpu.choose_tables(model):
        graphs["webgpu"] = "model-webgpu.onnx"
        (folder / "model-webgpu.onnx").write_bytes(model.SerializeToString())
        print(f"Graph for WebGPU: {len(model.graph.node)} nodes")
    return {"graphs": graphs, "shards": [shard.name for shard in shards], "plan": plan}
