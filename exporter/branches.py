"""Adapters that stay beside the weights: low-rank branches in the graph, and a small file an adapter to fill them.

A MatMulNBits y = x · W that an adapter targets gets y += (x · A) · B (LoRA, arXiv 2106.09685), where A [columns, rank]
and B [rank, rows] are inputs of the graph. Their rank is an axis that every adapter sizes as it likes; zeros of rank 1
are the base model, bit for bit. The quantized weights stay as they are, and a page switches adapters by feeding others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto, helper
from safetensors.torch import save
from torch import Tensor, nn

from exporter.adapter import CONFIG, TENSORS, Adapter, Pair, refuse_misfit
from exporter.checkpoint import licence_of, slug
from exporter.errors import ExportError
from exporter.fetch import sha256
from exporter.graph import attributes, replace_nodes
from handbill import manifest
from handbill.manifest import LORA_A, LORA_B


@dataclass(frozen=True)
class Switched:
    """An adapter to be exported beside the base, its pairs as they are stored: float16, the scale folded into B."""

    name: str
    title: str
    adapter: Adapter

    @property
    def file(self) -> str:
        return f"adapter-{self.name}.safetensors"

    @property
    def rank(self) -> int:
        return max(pair.a.shape[0] for pair in self.adapter.pairs.values())

    def stamp(self) -> object:
        """What JSON can hold and changes when the adapter or its names do."""
        return [self.name, self.title, *(sha256(self.adapter.folder / name) for name in (CONFIG, TENSORS))]

    def described(self, folder: Path, difference: float) -> manifest.Adapter:
        """Its entry in the manifest; the licence's text goes to ``folder``. ``difference`` is what the gate found."""
        own = self.adapter.folder
        licence, text = licence_of(own)
        target = f"adapter-{self.name}-LICENSE" if text else ""
        if text:
            (folder / target).write_text(text, encoding="utf-8")
        return manifest.Adapter(
            name=self.name,
            title=self.title,
            file=self.file,
            rank=self.rank,
            source=manifest.Source("folder", own.resolve().name, sha256(own / TENSORS)),
            licence=manifest.Licence(licence, target),
            difference=difference,
        )


def parse(argument: str) -> list[Switched]:
    """``PATH[,PATH]`` as the command line has it, each also as ``NAME=PATH``. Raises ExportError."""
    found: dict[str, Switched] = {}
    for each in argument.split(","):
        title, equals, path = each.partition("=")
        if not equals or Path(each).is_dir():
            title, path = Path(each).resolve().name, each
        if not title or not path:
            raise ExportError(f"--adapters {argument}: {each!r} is no PATH and no NAME=PATH.")
        name = slug(title)
        if name in found:
            raise ExportError(f"Two adapters are called {name}; give one another name with NAME=PATH.")
        found[name] = Switched(name, title, _rounded(Adapter(Path(path))))
    return list(found.values())


def _rounded(adapter: Adapter) -> Adapter:
    """``adapter`` as a file holds it: float16 is half of a download, and errs by a 2048th of what LoRA adds."""
    for name, pair in adapter.pairs.items():
        a, b = pair.a.half(), (pair.scale * pair.b).half()
        if not (a.isfinite().all() and b.isfinite().all()):
            raise ExportError(f"{adapter.folder.name}: {name} holds values past float16's range; copy it again.")
        adapter.pairs[name] = Pair(a.float(), b.float(), 1.0)
    return adapter


def refuse_misfits(switched: Sequence[Switched], model: Any) -> None:
    """Raise ExportError for an adapter that does not fit the linear layers of ``model``, or changes its embedding.

    The weights of ``model`` may be on the meta device.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = {embedding, head} if head.weight is embedding.weight else {embedding}
    layers = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or module is embedding
    }
    for each in switched:
        folder = each.adapter.folder.name
        for name in sorted(each.adapter.pairs):
            if layers.get(name) in tables:
                raise ExportError(
                    f"{folder} changes {name}, which is the embedding: only linear layers can be switched live. "
                    "Merge this adapter with --adapter."
                )
            if name not in layers:
                raise ExportError(f"{folder} is for another model: this one has no {name}.")
        refuse_misfit(each.adapter, lambda name: tuple(layers[name].weight.shape))


@dataclass
class Branches:
    """The branches of one graph. ``behind`` names the parameters of each of its matrices, as parameters_behind has
    them, ``rows`` is their number of outputs."""

    behind: Mapping[str, Sequence[str]]
    rows: Mapping[str, int]
    switched: Sequence[Switched]

    def __post_init__(self) -> None:
        targets = {name for each in self.switched for name in each.adapter.pairs}
        self.stems = [stem for stem, names in self.behind.items() if targets.intersection(names)]

    def put(self, model: Any) -> None:
        """Give the graph of ``model`` a branch at every matrix that an adapter targets."""
        if not self.stems:
            return
        nodes: list[Any] = []
        for node in model.graph.node:
            nodes.append(node)
            stem = node.input[1].removesuffix(".codes") if node.op_type == "MatMulNBits" else ""
            if stem not in self.stems:
                continue
            x, y, rank, low = node.input[0], node.output[0], f"{stem}.rank", f"{stem}.low_rank"
            shape = attributes(node)
            for name, axes in ((stem + LORA_A, [shape["K"], rank]), (stem + LORA_B, [rank, shape["N"]])):
                model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, axes))
            node.output[0] = f"{stem}.base"
            nodes += [
                helper.make_node("MatMul", [x, stem + LORA_A], [low], name=f"{stem}/lora_a"),
                helper.make_node("MatMul", [low, stem + LORA_B], [f"{stem}.added"], name=f"{stem}/lora_b"),
                helper.make_node("Add", [f"{stem}.base", f"{stem}.added"], [y], name=f"{stem}/lora"),
            ]
        replace_nodes(model.graph, nodes)

    def write(self, folder: Path) -> dict[str, int]:
        """Write the file of each adapter; the largest rank that one of them has at each branch."""
        ranks = dict.fromkeys(self.stems, 1)
        for each in self.switched:
            tensors: dict[str, Tensor] = {}
            for stem in self.stems:
                if pair := self._pair(each.adapter, stem):
                    ranks[stem] = max(ranks[stem], len(pair.a))
                    tensors |= {
                        stem + LORA_A: pair.a.T.half().contiguous(),
                        stem + LORA_B: pair.b.T.half().contiguous(),
                    }
            (folder / each.file).write_bytes(save(tensors))  # save_file would let nobody else read it
        return ranks

    def bytes(self, adapter: Adapter) -> int:
        """Bytes of the tensors that ``write`` puts into the file of ``adapter``."""
        pairs = [pair for stem in self.stems if (pair := self._pair(adapter, stem))]
        return sum(2 * (pair.a.numel() + pair.b.numel()) for pair in pairs)

    def _pair(self, adapter: Adapter, stem: str) -> Pair | None:
        """What ``adapter`` adds to a matrix of the graph; None for nothing.

        Stacked parameters share a branch: their A lie below one another, their B on the diagonal.
        """
        names = self.behind[stem]
        present = [adapter.pairs[name] for name in names if name in adapter.pairs]
        if not present:
            return None
        b = torch.zeros(sum(self.rows[name] for name in names), sum(len(pair.a) for pair in present))
        row = column = 0
        for name in names:
            if name in adapter.pairs:
                part = adapter.pairs[name].b
                b[row : row + part.shape[0], column : column + part.shape[1]] = part
                column += part.shape[1]
            row += self.rows[name]
        return Pair(torch.cat([pair.a for pair in present]), b, 1.0)
