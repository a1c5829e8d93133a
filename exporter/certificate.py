"""What an export has to prove before it is written, measured on the graphs as they ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
    gate: float,
) -> Any:
    """Gate every graph, set it to the accuracy_level that ships, and measure that: the fields of a Verification.

    ``references`` holds reference.npy, the logits to compare with, and the source's Predictions. Raises ExportError
    where a graph is wrong, or its perplexity on ``ids`` more than ``gate`` times the source's.
    """
    names = sorted(set(graphs.values()))
    reference, source = np.load(references / "reference.npy"), Predictions.open(references)
    gate_ids = ids[: len(reference)]
    _set_accuracy_level(folder, names, 0)  # a stopped run may have left the one that ships
    with stage("Verifying", len(names) * 3 * len(gate_ids) + len(ids), "tokens") as bar:
        found = [verify.compare(folder / name, kv, reference, gate_ids, bar.update) for name in names]
        _set_accuracy_level(folder, names, 4)
        shipped = verify.measure(folder / graphs["webgpu"], kv, ids, source, bar.update)
    ratio = shipped.perplexity / quantized["source"]
    if gate and not ratio <= gate:
        raise ExportError(
            f"The export is {ratio:.4f} times as perplexed as the checkpoint, and --gate allows {gate:g}: nothing was "
            "written. Give the weights more room with --budget or --bits 8, or try another --quant."
        )
    measured = Verification(
        prefill=max(each.prefill for each in found),
        chunked=max(each.chunked for each in found),
        decode=max(each.decode for each in found),
        tokens=len(gate_ids),
        text=f"{verify.TEXT.name}, {len(ids)} tokens",
        perplexity_source=quantized["source"],
        perplexity_quantized=quantized["quantized"],
        perplexity_shipped=shipped.perplexity,
        perplexity_ratio=ratio,
        kl_divergence=shipped.divergence,
        top1_agreement=shipped.agreement,
    )
    return asdict(measured)


def compare_answers(checkpoint: Checkpoint, graph: Path, kv: KVLayout) -> Any:
    """Greedy answers of ``graph`` against the whole checkpoint's: the fields of a Greedy."""
    special_tokens = {"bos_token": checkpoint.bos_token, "eos_token": checkpoint.eos_token}
    asked = greedy.prompts(checkpoint.tokenizer, checkpoint.chat_template, special_tokens)
    with stage("Answering", len(asked), "prompts") as bar:
        said = greedy.answers(graph, kv, asked, checkpoint.eos_ids, bar.update)
    return asdict(greedy.compare(whole_model(checkpoint.config, checkpoint.weights), asked, said))


def _set_accuracy_level(folder: Path, names: Sequence[str], level: int) -> None:
    for name in names:
        model = graph.load(folder / name)
        graph.set_accuracy_level(model, level)
        (folder / name).write_bytes(model.SerializeToString())
