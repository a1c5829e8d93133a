"""report.html: the certificate of an export as one page for people, with its plots inside and no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from handbill.manifest import Manifest

NAME = "report.html"
_TEMPLATE = Path(__file__).with_name("report.html.j2")

# The error plot, in units of its viewBox (720 wide): left and right end of the layers, top and bottom of the errors.
_LEFT, _RIGHT, _TOP, _BOTTOM = 104.0, 700.0, 16.0, 220.0


@dataclass(frozen=True)
class Record:
    """How one matrix was stored: ``largest`` absolute error of a weight, and ``relative``, the root mean square of the
    errors over that of the weights. ``is_table`` for embedding and lm_head."""

    name: str
    rows: int
    columns: int
    bits: int
    bytes: int
    method: str
    largest: float
    relative: float
    is_table: bool


def render(manifest: Manifest, records: Sequence[Record], gate: float = 0.0) -> str:
    """The page for ``manifest``, whose ``files`` need not name the page itself. The same input gives the same bytes."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        model=manifest,
        checked=manifest.verification,
        bars=_bars(manifest),
        plot=_plot(records),
        parts=_parts(manifest, records),
        matrices=records,
        gate=gate,
    )


def _bars(manifest: Manifest) -> list[dict[str, Any]]:
    checked = manifest.verification
    steps = [
        ("The checkpoint, eager torch", "source", checked.perplexity_source),
        ("With the quantized weights, eager torch", "quantized", checked.perplexity_quantized),
        ("The graph that ships", "shipped", checked.perplexity_shipped),
    ]
    largest = max(value for _, _, value in steps)
    return [
        {"label": label, "kind": kind, "value": value, "width": 100 * value / largest} for label, kind, value in steps
    ]


def _plot(records: Sequence[Record]) -> dict[str, Any]:
    """Dots, ticks of the error axis and marks of the layer axis; no dots where nothing was rounded."""
    worst = max((record.relative for record in records), default=0.0)
    if not worst:
        return {"dots": [], "ticks": [], "marks": []}
    numbers = [_layer(record) for record in records]
    layers = max(numbers) + 1
    step = (_RIGHT - _LEFT) / max(1, layers)

    def x(layer: int) -> float:
        return _LEFT + step * (layer + 1)

    def y(error: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * error / worst

    return {
        "dots": [
            {
                "x": x(layer),
                "y": y(record.relative),
                "kind": "narrow" if record.bits == 4 else "wide",
                "title": f"{record.name}: {100 * record.relative:.2f} %, {record.bits} bit",
            }
            for record, layer in zip(records, numbers, strict=True)
        ],
        "ticks": [{"y": y(worst * part / 4), "label": f"{100 * worst * part / 4:.1f} %"} for part in range(5)],
        "marks": [{"x": x(layer), "label": str(layer)} for layer in range(0, layers, max(1, layers // 10))],
    }


def _layer(record: Record) -> int:
    """The decoder layer that a parameter's name says, or -1 for embedding and lm_head."""
    found = re.search(r"\.(\d+)\.", record.name)
    return int(found[1]) if found else -1


def _parts(manifest: Manifest, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Bytes of the export by what they are for, largest first; places in a bar 720 wide."""
    shards = sum(manifest.file(name).bytes for name in manifest.weights)
    graphs = sum(manifest.file(name).bytes for name in {*manifest.graphs.values(), *filter(None, [manifest.plan])})
    sizes = {"Embedding and lm_head": 0, "Attention": 0, "Feed forward": 0}
    for record in records:
        kind = "Attention" if re.search(r"attn|attention", record.name) else "Feed forward"
        sizes["Embedding and lm_head" if record.is_table else kind] += record.bytes
    sizes["Norms, biases, rotary tables and padding"] = shards - sum(sizes.values())
    sizes["Graphs and plan"] = graphs
    sizes["Tokenizer"] = manifest.file(manifest.tokenizer).bytes
    total = sum(sizes.values())
    parts, start = [], 0.0
    for label, size in sorted(sizes.items(), key=lambda item: -item[1]):
        width = 720 * size / total
        parts.append({"label": label, "bytes": size, "share": size / total, "x": start, "width": width})
        start += width
    return parts
