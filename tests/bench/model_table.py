"""Every recipe in a table: `python tests/bench/model_table.py` writes docs/models.md, and README's table between MARKS.

Sizes of models that were exported here are those of the export, from tests/bench/results/; all others are computed.
README has those that were exported here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "web")]

from exporter.estimate import GPU_MEMORY, WASM_MEMORY  # noqa: E402
from exporter.listing import count, estimated, fits, size  # noqa: E402
from exporter.recipes import RECIPES, Recipe  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
RESULTS = Path(__file__).parent / "results"
HEAD = """# Models that have a name

`exporter/export.py --list` prints the same on a terminal. *Page* is what a visitor downloads of the model: measured in
bold, else computed from its config. *Perplexity* is that of the graph as it ships, in times the checkpoint's own, on
1,024 tokens of held-out text; a dash where the real weights could not be reached from here, and the architecture was
proven on a tiny model with its structure. *WASM* and *GPU* say how many tokens of context a 4 GiB page and a 4 GB
graphics chip hold beside the weights, with the KV cache in float32. All of them have a plan for our own int4 kernels on
the processor, and a graph for WebGPU.

| name | parameters | page | bits a weight | perplexity | WASM | GPU | licence |
|---|---|---|---|---|---|---|---|
"""
FAITHFUL = """
## How faithful those are that were exported here

The graph as it ships (run by native onnxruntime, its activations in blocks of int8) against the checkpoint, from each
export's certificate. *KL divergence* is the mean over the same text, in nats a token; *same likeliest token* the share
of its positions where both find the same. *Greedy answers* are to 8 prompts, of 64 tokens at most: how many of all
their tokens are the checkpoint's likeliest too, and how many answers are its own to the end.

| name | perplexity, checkpoint | perplexity, shipped | KL divergence | same likeliest token | greedy answers |
|---|---|---|---|---|---|
"""
NOT_RUN = "–"
README = ROOT / "README.md"
MARKS = "<!-- models -->\n", "<!-- /models -->\n"
README_HEAD = """\
| exported here | parameters | page | bits a weight | perplexity / checkpoint's | same likeliest token |
|---|---|---|---|---|---|
"""


def figures(recipe: Recipe) -> dict[str, Any]:
    """What tests/bench/export.py measured of the model, or of its shape with random weights; {} if it was not run."""
    for name in (f"export-{recipe.name}", "export"):
        path = RESULTS / f"{name}.json"
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if found.get("model") == recipe.name:
            return dict(found)
    return {}


def rows() -> Iterator[str]:
    for recipe in RECIPES:
        computed, measured = estimated(recipe), figures(recipe)
        real = measured and recipe.package
        cells = [
            recipe.name,
            count(computed.parameters),
            f"**{size(measured['bytes'])}**" if measured else size(computed.page),
            f"{measured.get('bits_per_weight', computed.bits_per_weight):.2f}",
            f"{measured['perplexity_ratio']:.4f}" if real else NOT_RUN,
            fits(computed, WASM_MEMORY),
            fits(computed, GPU_MEMORY),
            recipe.licence,
        ]
        yield f"| {' | '.join(cells)} |\n"


def faithful() -> Iterator[str]:
    """A row for each model whose real weights were exported here."""
    for recipe in RECIPES:
        measured = figures(recipe)
        if measured and recipe.package:
            said = measured["greedy"]
            cells = [
                recipe.name,
                f"{measured['perplexity_source']:.3f}",
                f"{measured['perplexity_shipped']:.3f}",
                f"{measured['kl_divergence']:.4f}",
                f"{measured['top1_agreement']:.1%}",
                f"{said['agreed']} of {said['compared']} tokens, {said['identical']} of {said['prompts']} whole",
            ]
            yield f"| {' | '.join(cells)} |\n"


def markdown() -> str:
    return HEAD + "".join(rows()) + FAITHFUL + "".join(faithful())


def readme() -> str:
    """The models of which there are figures; a shape with random weights has no perplexity worth the name."""
    lines = []
    for recipe in RECIPES:
        if measured := figures(recipe):
            cells = [
                recipe.title if recipe.package else f"{recipe.title}, random weights",
                count(measured["parameters"]),
                size(measured["bytes"]),
                f"{measured['bits_per_weight']:.2f}",
                f"{measured['perplexity_ratio']:.4f}" if recipe.package else "not run here: weights not reachable",
                f"{measured['top1_agreement']:.1%}" if recipe.package else NOT_RUN,
            ]
            lines.append(f"| {' | '.join(cells)} |\n")
    return README_HEAD + "".join(lines)


def write_readme() -> None:
    before, _, rest = README.read_text("utf-8").partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    assert mark, f"README.md has no {MARKS[0].strip()} … {MARKS[1].strip()}"
    README.write_text(f"{before}{MARKS[0]}{readme()}{MARKS[1]}{after}", "utf-8")


if __name__ == "__main__":
    PAGE.write_text(markdown(), encoding="utf-8")
    write_readme()
    print(PAGE.relative_to(ROOT), README.relative_to(ROOT))
