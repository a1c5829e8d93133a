"""What an export has to prove before it is written, measured on the graphs as they ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter import graph, greedy, verify
from exporter.agreement import Predictions
from exporter.checkpoint import Checkpoint
from exporter.errors import ExportError
from exporter.progress import stage
from exporter.skeleton import whole_model
from handbill.manifest import KVLayout, Verification


@dataclass(frozen=True)
class Demands:
    """``gate`` is the highest perplexity ratio that may be written, 0 for any; ``full`` also compares greedy answers,
    for which the whole checkpoint is held in memory."""

    gate: float = 0.0
    full: bool = False


def certify(
    folder: Path,
    graphs: dict[str, str],
    kv: KVLayout,
    ids: Sequence[int],
    quantized: Any,
    references: Path,
    checks: verify.Gate,
    gate: float,
) -> Any:
    """Gate every graph, set it to the accuracy_level that ships, and measure that: the fields of a Verification.

    ``references`` holds the source's Predictions. Raises ExportError where a graph does not pass ``checks``, or its
    perplexity on ``ids`` is more than ``gate`` times the source's.
    """
    names = sorted(set(graphs.values()))
    source = Predictions.open(references)
    _set_accuracy_level(folder, names, 0)  # a stopped run may have left the one that ships
    with stage("Verifying", len(names) * 2 * len(checks.ids) + len(ids), "tokens") as bar:
        found = [checks.passed(folder / name, kv, bar.update) for name in names]
        _set_accuracy_level(folder, names, 4)
        shipped = verify.measure(folder / fastest(graphs), kv, ids, source, bar.update)
    ratio = shipped.perplexity / quantized["source"]
    if gate and not ratio <= gate:
        raise ExportError(
            f"Over {len(ids)} tokens of text the export is {ratio:.4f} times as perplexed as the checkpoint, and "
            f"--gate allows {gate:g}: nothing was written. Give the weights more room with --budget or --bits 8, or "
            "try another --quant."
        )
    measured = Verification(
        prefill=max(each.prefill for each in found),
        chunked=max(each.chunked for each in found),
        decode=max(each.decode for each in found),
        float32=checks.float32,
        allowed=checks.allowed,
        tokens=len(checks.ids),
        text=f"{verify.TEXT.name}, {len(ids)} tokens",
        perplexity_source=quantized["source"],
        perplexity_quantized=quantized["quantized"],
        perplexity_shipped=shipped.perplexity,
        perplexity_ratio=ratio,
        kl_divergence=shipped.divergence,
        top1_agreement=shipped.agreement,
    )
    return asdict(measured)


def verify_adapters(
    folder: Path, graphs: dict[str, str], kv: KVLayout, checks: Mapping[str, verify.Gate]
) -> dict[str, float]:
    """Gate every graph with each adapter, by ``checks`` of its file: the largest difference of a logit, by file.

    Raises ExportError where a graph does not pass.
    """
    names = sorted(set(graphs.values()))
    _set_accuracy_level(folder, names, 0)
    found = {}
    with stage("Verifying adapters", sum(len(names) * 2 * len(each.ids) for each in checks.values()), "tokens") as bar:
        for file, each in checks.items():
            found[file] = max(each.passed(folder / name, kv, bar.update, folder / file).worst for name in names)
    _set_accuracy_level(folder, names, 4)
    return found


def fastest(graphs: Mapping[str, str]) -> str:
    """The graph that native onnxruntime runs fastest: the one without float zero points, if there is one.

    Where the two differ in attention alone (webgpu.py) it is the slower one, by what attention takes of a model.
    """
    return graphs.get("webgpu", graphs["wasm"])


def compare_answers(checkpoint: Checkpoint, graph: Path, kv: KVLayout) -> Any:
    """Greedy answers of ``graph`` against the whole checkpoint's: the fields of a Greedy."""
    asked = greedy.prompts(checkpoint.tokenizer, checkpoint.chat_template, checkpoint.special_tokens)
    with stage("Answering", len(asked), "prompts") as bar:
        said = greedy.answers(graph, kv, asked, checkpoint.eos_ids, bar.update)
    return asdict(greedy.compare(whole_model(checkpoint.config, checkpoint.weights), asked, said))


def _set_accuracy_level(folder: Path, names: Sequence[str], level: int) -> None:
    for name in names:
        model = graph.load(folder / name)
        graph.set_accuracy_level(model, level)
        partial = folder / f"{name}.partial"  # the stage that wrote the graph counts as whole: never half of one
        partial.write_bytes(model.SerializeToString())
        partial.replace(folder / name)
