"""The flat plan of the CPU int4 session: model.onnx as a list of operations that WebAssembly runs in one call.

``plan.json`` is derived from the graph and copies no weights: it says where in the shards they lie. Its keys:

- ``format`` 1, ``context`` (positions in the rotary tables), ``vocabulary``, ``top_k``
- ``tensors``: [{file, offset, dtype, elements}], or {data (base64), dtype, elements} for what model.onnx holds inside
- ``weights``: [{rows, columns, bits, block, values, scales, factors?, zeros?, bias?}], numbers of tensors; ``zeros`` is
  {kind, tensor, factors?, shift?}. A weight is scale · (value - zero) where kind is ``packed`` (uint8, as MatMulNBits
  has them) or ``float``, scale · (value - shift) + minimum where it is ``minimum`` or (stored with the other sign)
  ``minimum_negated``, and scale · (value - middle) without ``zeros``. Where there are ``factors`` (uint8 or int8), a
  scale or minimum is the tensor's value for several neighbouring blocks, times a factor of each
- ``buffers``: [{rows: tokens | asked, width}] of float32 rows, reused as their values die
- ``caches``: [{kv_heads, head_dim}], one per layer
- ``ops``, in order; an operand is [buffer, first column]. web/sessions/cpu-plan.js lists and checks their fields

An operator that the kernels do not know raises PlanError: such a model runs on ORT Web only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from exporter.graph import attributes
from exporter.plan_attention import AttentionBuilder
from exporter.plan_buffers import reuse_buffers
from exporter.plan_builder import Op
from exporter.plan_tensors import PlanError, refuse
from exporter.plan_values import Activated, Columns, LowRank
from handbill.manifest import LORA_A, LORA_B

FORMAT = 1
NO_LIMIT = 1 << 20
"""``context`` of a model without rotary tables; the manifest's own limit counts then."""

ASKED_INPUT, IDS_INPUT = "positions", "input_ids"
NORMS = {
    "SimplifiedLayerNormalization": ("norm", ["weight"]),
    "LayerNormalization": ("layer_norm", ["weight", "shift"]),
    "SkipSimplifiedLayerNormalization": ("norm", ["weight", "bias"]),
    "SkipLayerNormalization": ("layer_norm", ["weight", "shift", "bias"]),
}
"""What each becomes, and the vectors that it reads: ``bias`` is added before the norm, ``shift`` after it."""


class Planner(AttentionBuilder):
    """Walks a graph node by node: what each operator becomes."""

    def __init__(self, model: Any, ranks: Mapping[str, int]) -> None:
        super().__init__(model)
        self.ranks = ranks
        self.known: dict[str, Callable[[Any], None]] = {
            "GatherBlockQuantized": self._embed,
            "MatMulNBits": self._linear,
            "MatMul": self._low_rank,
            "SimplifiedLayerNormalization": self._norm,
            "LayerNormalization": self._norm,
            "SkipSimplifiedLayerNormalization": self._skip_norm,
            "SkipLayerNormalization": self._skip_norm,
            "Cast": self.cast_length,
            "Greater": self.compare_length,
            "GroupQueryAttention": self.attend,
            "Gather": self._gather,
            "TopK": self._top_k,
            "Reshape": self._reshape,
            "Split": self._split,
            "Slice": self._slice,
            "Gelu": self._activation,
            "FastGelu": self._activation,
            "Sigmoid": self._activation,
            "Tanh": self._activation,
            "Relu": self._activation,
            "Mul": self._arithmetic,
            "Add": self._arithmetic,
            "Sub": self._arithmetic,
            "Div": self._arithmetic,
        }

    def plan(self) -> dict[str, Any]:
        """Raises PlanError."""
        for node in self.model.graph.node:
            if not self.constants.fold(node):
                if node.op_type not in self.known:
                    raise refuse(node)
                self.known[node.op_type](node)
        if not self.ops or self.ops[-1]["op"] != "top_k":
            raise PlanError("The graph does not end in TopK, so this model runs on ORT Web only on the CPU.")
        embedding = next((op for op in self.ops if op["op"] == "embed"), None)
        if embedding is None:
            raise PlanError("The graph has no quantized embedding: this model runs on ORT Web only on the CPU.")
        return {
            "format": FORMAT,
            "context": self.context or NO_LIMIT,
            "vocabulary": self.ops[-1]["width"],
            "top_k": self.ops[-1].pop("k"),
            "tensors": self.constants.tensors,
            "weights": self.weights.entries,
            "buffers": reuse_buffers(self.ops, self.buffers),
            "caches": self.caches,
            "ops": self.ops,
        }

    def _embed(self, node: Any) -> None:
        settings = attributes(node)
        values = self.constant(node, 0)
        if node.input[1] != IDS_INPUT or settings.get("gather_axis", 0) or values.dtype != "uint8":
            raise refuse(node)
        rows = values.shape[0]
        columns = values.elements * 8 // int(settings.get("bits", 4)) // rows
        weights = self.weights.add(node, values, self.optional(node, 2), self.optional(node, 3), rows, columns)
        y = self.new(columns, "tokens")
        self.ops.append({"op": "embed", "weights": weights, "y": y.operand})
        self.values[node.output[0]] = y

    def _linear(self, node: Any) -> None:
        settings = attributes(node)
        x = self.columns(node, 0)
        if (len(node.input) > 4 and node.input[4]) or x.width != settings["K"]:
            raise refuse(node)
        scales, zeros = self.optional(node, 2), self.optional(node, 3)
        bias = self.constant(node, 5) if len(node.input) > 5 and node.input[5] else None
        weights = self.weights.add(node, self.constant(node, 1), scales, zeros, settings["N"], settings["K"], bias)
        y = self.new(settings["N"], self.buffers[x.buffer]["rows"])
        self.ops.append({"op": "linear", "weights": weights, "x": x.operand, "y": y.operand})
        self.values[node.output[0]] = y

    def _low_rank(self, node: Any) -> None:
        """A product with an adapter's A or B; the operation is emitted by the Add that ends the branch."""
        x = self.values.get(node.input[0])
        matrix, dot, part = node.input[1].rpartition(".")
        if matrix not in self.ranks or node.input[1] not in {value.name for value in self.model.graph.input}:
            raise refuse(node)
        if isinstance(x, LowRank) and not x.is_wide and dot + part == LORA_B and x.matrix == matrix:
            self.values[node.output[0]] = replace(x, is_wide=True)
        elif dot + part == LORA_A:
            self.values[node.output[0]] = LowRank(self.columns(node, 0), matrix)
        else:
            raise refuse(node)

    def _add_low_rank(self, node: Any, branch: LowRank) -> None:
        """``y += (x · A) · B`` in place: nothing else reads what the matrix itself gives."""
        y = self.columns(node, 0)
        if not branch.is_wide or y.start:
            raise refuse(node)
        op: Op = {"op": "low_rank", "matrix": branch.matrix, "rank": self.ranks[branch.matrix]}
        op |= {"x": branch.of.operand, "columns": branch.of.width, "y": y.operand, "rows": y.width}
        self.ops.append(op)
        self.values[node.output[0]] = y

    def _norm(self, node: Any) -> None:
        settings = attributes(node)
        x, width = self.columns(node, 0), self.constant(node, 1).elements
        if settings.get("axis", -1) != -1 or width != (x.head or x.width) or any(node.output[1:]):
            raise refuse(node)
        y = self.new(x.width, self.buffers[x.buffer]["rows"], x.head)
        kind, names = NORMS[node.op_type]
        op: Op = {"op": kind, "x": x.operand, "width": width, "y": y.operand, "groups": x.width // width}
        op |= {"epsilon": float(settings.get("epsilon", 1e-5))} | self._vectors(node, 1, names, width)
        self.ops.append(op)
        self.values[node.output[0]] = y

    def _skip_norm(self, node: Any) -> None:
        x, skip = self.columns(node, 0), self.columns(node, 1)
        if x.head or skip.width != x.width or any(node.output[1:3]):
            raise refuse(node)
        rows = self.buffers[x.buffer]["rows"]
        total, y = self.new(x.width, rows), self.new(x.width, rows)
        kind, names = NORMS[node.op_type]
        op: Op = {"op": kind, "x": x.operand, "skip": skip.operand, "sum": total.operand, "y": y.operand}
        op |= {"width": x.width, "groups": 1, "epsilon": float(attributes(node).get("epsilon", 1e-5))}
        self.ops.append(op | self._vectors(node, 2, names, x.width))
        self.values[node.output[0]] = y
        if len(node.output) > 3 and node.output[3]:
            self.values[node.output[3]] = total

    def _vectors(self, node: Any, first: int, names: Sequence[str], width: int) -> dict[str, int]:
        """The tensors that ``node`` reads from input ``first`` on, by ``names``; all but the weight may be missing."""
        found = {}
        for index, name in enumerate(names, first):
            if name == "weight" or (len(node.input) > index and node.input[index]):
                vector = self.constant(node, index)
                if vector.elements != width:
                    raise refuse(node)
                found[name] = self.constants.number(vector)
        return found

    def _gather(self, node: Any) -> None:
        if self.choose_table(node):
            return
        x = self.columns(node, 0)
        if node.input[1] != ASKED_INPUT or attributes(node).get("axis", 0) != 1 or x.head:
            raise refuse(node)
        y = self.new(x.width, "asked")
        self.ops.append({"op": "pick", "x": x.operand, "y": y.operand, "width": x.width})
        self.values[node.output[0]] = y

    def _top_k(self, node: Any) -> None:
        x = self.columns(node, 0)
        (k,) = self.numbers(node, 1)
        largest = attributes(node).get("largest", 1)
        if self.buffers[x.buffer]["rows"] != "asked" or not largest or attributes(node).get("axis", -1) not in (-1, 2):
            raise refuse(node)
        self.ops.append({"op": "top_k", "x": x.operand, "width": x.width, "k": int(k)})

    def _reshape(self, node: Any) -> None:
        """Only the two that split and join heads: [0, 0, heads, head_dim] and [0, 0, width]."""
        x, shape = self.columns(node, 0), [int(size) for size in self.numbers(node, 1)]
        if len(shape) not in (3, 4) or shape[:2] not in ([0, 0], [1, -1]):
            raise refuse(node)
        head = 0 if len(shape) == 3 else shape[3] if shape[3] > 0 else x.width // shape[2]
        self.values[node.output[0]] = replace(x, head=head)

    def _split(self, node: Any) -> None:
        x = self.columns(node, 0)
        if attributes(node).get("axis", 0) not in (-1, 2) or x.head:
            raise refuse(node)
        sizes = [x.width // len(node.output)] * len(node.output)
        if len(node.input) > 1 and node.input[1]:
            sizes = [int(size) for size in self.numbers(node, 1)]
        start = x.start
        for name, size in zip(node.output, sizes, strict=True):
            self.values[name] = Columns(x.buffer, start, size)
            start += size

    def _slice(self, node: Any) -> None:
        x = self.columns(node, 0)
        start, end, axis = ([int(number) for number in self.numbers(node, i)] for i in (1, 2, 3))
        step = [int(number) for number in self.numbers(node, 4)] if len(node.input) > 4 else [1]
        if len(axis) != 1 or axis[0] not in (-1, 2) or step != [1] or x.head:
            raise refuse(node)
        low, high, _ = slice(start[0], end[0]).indices(x.width)
        self.values[node.output[0]] = Columns(x.buffer, x.start + low, high - low)

    def _activation(self, node: Any) -> None:
        kind = node.op_type.lower()
        if node.op_type == "Gelu":
            kind = "gelu_tanh" if attributes(node).get("approximate", b"none") == b"tanh" else "gelu_erf"
        if node.op_type == "FastGelu":
            if len(node.input) > 1 and node.input[1]:
                raise refuse(node)
            kind = "gelu_tanh"
        self.values[node.output[0]] = Activated(kind, self.columns(node, 0))

    def _arithmetic(self, node: Any) -> None:
        combine = node.op_type.lower()
        a, b = (self.values.get(name) for name in node.input)
        if isinstance(b, LowRank):
            self._add_low_rank(node, b)
            return
        if combine == "mul":
            for gate, x in ((a, b), (b, a)):
                if isinstance(gate, Activated) and gate.kind == "sigmoid" and gate.of == x:
                    self.values[node.output[0]] = Activated("silu", gate.of)
                    return
        if combine in ("mul", "add") and (a is None or isinstance(b, Activated)):
            node = _swapped(node)
            a, b = b, a
        first = a if isinstance(a, Activated) else self.columns(node, 0)
        width = first.of.width if isinstance(first, Activated) else first.width
        if b is not None:
            second = self.columns(node, 1)
            if second.width != width:
                raise refuse(node)
            y = self.emit_map(first, combine, width, b=second.operand)
        else:
            constant = self.constant(node, 1)
            if constant.elements == 1:
                y = self.emit_map(first, combine, width, scalar=self.numbers(node, 1)[0])
            elif constant.elements == width and constant.shape[-1] == width:
                y = self.emit_map(first, combine, width, vector=self.constants.number(constant))
            else:
                raise refuse(node)
        self.values[node.output[0]] = y


def _swapped(node: Any) -> Any:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [node.input[1], node.input[0]]
    return copy


def derive(model: Any, ranks: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The plan of a ModelProto, its weights left on disk. Raises PlanError where the kernels lack what it needs.

    ``ranks`` is the largest rank that an adapter has at each matrix with a branch.
    """
    return Planner(model, ranks or {}).plan()


def write(model: Any, target: Path, ranks: Mapping[str, int] | None = None) -> None:
    """Write the plan of ``model`` as JSON to ``target``. Raises PlanError, and then writes nothing."""
    text = json.dumps(derive(model, ranks), separators=(",", ":"), sort_keys=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(target)
