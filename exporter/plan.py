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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from exporter.graph import attributes
from exporter.plan_buffers import reuse_buffers
from exporter.plan_tensors import Constants, PlanError, Product, Quotient, Stored, refuse

FORMAT = 1
NO_LIMIT = 1 << 20
"""``context`` of a model without rotary tables; the manifest's own limit counts then."""

BLOCK = 32
HALF = 16
"""The one smaller block that the kernels know, of GGUF's Q6_K."""

ASKED_INPUT, IDS_INPUT = "positions", "input_ids"
NO_AXES_ATTENTION = ("smooth_softmax", "qk_output", "no_causal")

Op = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """``width`` columns of a buffer from ``start`` on; ``head`` is the size of the last axis where heads are split."""

    buffer: int
    start: int
    width: int
    head: int = 0

    @property
    def operand(self) -> list[int]:
        return [self.buffer, self.start]


@dataclass(frozen=True)
class Activated:
    """An activation that has not been computed yet, because it may go into the operation that reads it."""

    kind: str
    of: Columns


class Planner:
    """Walks a graph node by node; the plan grows in ``ops``."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.constants = Constants(model)
        self.values: dict[str, Any] = {}
        self.buffers: list[dict[str, Any]] = []
        self.weights: list[dict[str, Any]] = []
        self.caches: list[dict[str, int]] = []
        self.ops: list[Op] = []
        self.context = 0
        self.pasts: set[str] = set()
        self.known: dict[str, Callable[[Any], None]] = {
            "GatherBlockQuantized": self._embed,
            "MatMulNBits": self._linear,
            "SimplifiedLayerNormalization": self._norm,
            "SkipSimplifiedLayerNormalization": self._skip_norm,
            "GroupQueryAttention": self._attend,
            "Gather": self._pick,
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
            "weights": self.weights,
            "buffers": reuse_buffers(self.ops, self.buffers),
            "caches": self.caches,
            "ops": self.ops,
        }

    # Values

    def _new(self, width: int, rows: str, head: int = 0) -> Columns:
        self.buffers.append({"rows": rows, "width": width})
        return Columns(len(self.buffers) - 1, 0, width, head)

    def _columns(self, node: Any, index: int) -> Columns:
        """Input ``index`` as columns of a buffer; an activation that waits is computed now."""
        value = self.values.get(node.input[index])
        if isinstance(value, Activated):
            value = self._emit_map(value, "none", value.of.width)
            self.values[node.input[index]] = value
        if not isinstance(value, Columns):
            raise refuse(node)
        return value

    def _emit_map(self, a: Columns | Activated, combine: str, width: int, **second: Any) -> Columns:
        kind, of = (a.kind, a.of) if isinstance(a, Activated) else ("none", a)
        y = self._new(width, self.buffers[of.buffer]["rows"], of.head)
        op = {"op": "map", "activation": kind, "combine": combine, "a": of.operand, "width": width, "y": y.operand}
        self.ops.append(op | second)
        return y

    def _constant(self, node: Any, index: int) -> Stored:
        value = self.constants.get(node.input[index])
        if not isinstance(value, Stored):
            raise refuse(node)
        return value

    def _numbers(self, node: Any, index: int) -> list[float]:
        return self.constants.numbers(node, index)

    # Operators

    def _weights(self, node: Any, values: Stored, scales: Any, zeros: Any, rows: int, columns: int) -> dict[str, Any]:
        settings = attributes(node)
        bits, block = int(settings.get("bits", 4)), int(settings["block_size"])
        if bits not in (4, 8) or (block % BLOCK and block != HALF) or not isinstance(scales, Stored | Product):
            raise refuse(node)
        number = self.constants.number
        weights: dict[str, Any] = {"rows": rows, "columns": columns, "bits": bits, "block": block}
        weights |= {"values": number(values)} | self._scales(scales, "scales")
        if isinstance(zeros, Quotient) and zeros.denominator == scales:
            minima = zeros.numerator
            kind = "minimum" if isinstance(minima, Stored) and minima.negated else "minimum_negated"
            if isinstance(minima, Stored):
                minima = replace(minima, negated=False)
            weights["zeros"] = {"kind": kind} | self._scales(minima, "tensor")
            if zeros.shift:
                weights["zeros"]["shift"] = zeros.shift
        elif isinstance(zeros, Stored) and not zeros.negated:
            weights["zeros"] = {"kind": "packed" if zeros.dtype == "uint8" else "float", "tensor": number(zeros)}
        elif zeros is not None:
            raise refuse(node)
        return weights

    def _scales(self, scales: Stored | Product, key: str) -> dict[str, int]:
        if isinstance(scales, Stored):
            return {key: self.constants.number(scales)}
        return {key: self.constants.number(scales.values), "factors": self.constants.number(scales.factors)}

    def _add_weights(self, weights: dict[str, Any]) -> int:
        if weights not in self.weights:
            self.weights.append(weights)
        return self.weights.index(weights)

    def _optional(self, node: Any, index: int) -> Any:
        return self.constants.get(node.input[index]) if len(node.input) > index and node.input[index] else None

    def _embed(self, node: Any) -> None:
        settings = attributes(node)
        values = self._constant(node, 0)
        if node.input[1] != IDS_INPUT or settings.get("gather_axis", 0) or values.dtype != "uint8":
            raise refuse(node)
        rows = values.shape[0]
        columns = values.elements * 8 // int(settings.get("bits", 4)) // rows
        weights = self._weights(node, values, self._optional(node, 2), self._optional(node, 3), rows, columns)
        y = self._new(columns, "tokens")
        self.ops.append({"op": "embed", "weights": self._add_weights(weights), "y": y.operand})
        self.values[node.output[0]] = y

    def _linear(self, node: Any) -> None:
        settings = attributes(node)
        x = self._columns(node, 0)
        if (len(node.input) > 4 and node.input[4]) or x.width != settings["K"]:
            raise refuse(node)
        scales, zeros = self._optional(node, 2), self._optional(node, 3)
        weights = self._weights(node, self._constant(node, 1), scales, zeros, settings["N"], settings["K"])
        if len(node.input) > 5 and node.input[5]:
            weights["bias"] = self.constants.number(self._constant(node, 5))
        y = self._new(settings["N"], self.buffers[x.buffer]["rows"])
        self.ops.append({"op": "linear", "weights": self._add_weights(weights), "x": x.operand, "y": y.operand})
        self.values[node.output[0]] = y

    def _norm(self, node: Any) -> None:
        settings = attributes(node)
        x, weight = self._columns(node, 0), self._constant(node, 1)
        width = weight.elements
        if settings.get("axis", -1) != -1 or width != (x.head or x.width) or any(node.output[1:]):
            raise refuse(node)
        y = self._new(x.width, self.buffers[x.buffer]["rows"], x.head)
        self.ops.append(
            {"op": "norm", "x": x.operand, "weight": self.constants.number(weight), "width": width, "y": y.operand}
            | {"groups": x.width // width, "epsilon": float(settings.get("epsilon", 1e-5))}
        )
        self.values[node.output[0]] = y

    def _skip_norm(self, node: Any) -> None:
        x, skip, weight = self._columns(node, 0), self._columns(node, 1), self._constant(node, 2)
        if weight.elements != x.width or x.head or skip.width != x.width or any(node.output[1:3]):
            raise refuse(node)
        rows = self.buffers[x.buffer]["rows"]
        total, y = self._new(x.width, rows), self._new(x.width, rows)
        op: Op = {"op": "norm", "x": x.operand, "skip": skip.operand, "sum": total.operand, "y": y.operand}
        op |= {"weight": self.constants.number(weight), "width": x.width, "groups": 1}
        op["epsilon"] = float(attributes(node).get("epsilon", 1e-5))
        if len(node.input) > 3 and node.input[3]:
            op["bias"] = self.constants.number(self._constant(node, 3))
        self.ops.append(op)
        self.values[node.output[0]] = y
        if len(node.output) > 3 and node.output[3]:
            self.values[node.output[3]] = total

    def _attend(self, node: Any) -> None:
        settings = attributes(node)
        if any(node.input[9:]) or any(settings.get(name) for name in NO_AXES_ATTENTION):
            raise refuse(node)
        heads, kv_heads = settings["num_heads"], settings["kv_num_heads"]
        q = self._columns(node, 0)
        if node.input[1]:
            head_dim = q.width // heads
            k, v = self._columns(node, 1), self._columns(node, 2)
        else:
            head_dim = q.width // (heads + 2 * kv_heads)
            k = replace(q, start=q.start + heads * head_dim, width=kv_heads * head_dim)
            v = replace(k, start=k.start + kv_heads * head_dim)
        past = node.input[3]
        own = past in {value.name for value in self.model.graph.input}
        if head_dim % 8 or head_dim > 512 or k.width != kv_heads * head_dim or not own or past in self.pasts:
            raise refuse(node)  # layers that share keys and values are not known here
        self.pasts.add(past)
        op: Op = {"op": "attend", "cache": len(self.caches), "q": q.operand, "k": k.operand, "v": v.operand}
        op |= {"heads": heads, "scale": float(settings.get("scale") or head_dim**-0.5)}
        op |= {"softcap": float(settings.get("softcap", 0.0)), "window": max(0, settings.get("local_window_size", -1))}
        if settings.get("do_rotary"):
            cos, sin = self._constant(node, 7), self._constant(node, 8)
            rows, half = cos.shape
            self.context = min(self.context or rows, rows)
            number = self.constants.number
            op["rotary"] = {"cos": number(cos), "sin": number(sin), "dim": 2 * half}
            op["rotary"]["interleaved"] = bool(settings.get("rotary_interleaved", 0))
        y = self._new(heads * head_dim, "tokens")
        self.ops.append(op | {"y": y.operand})
        self.caches.append({"kv_heads": kv_heads, "head_dim": head_dim})
        self.values[node.output[0]] = y

    def _pick(self, node: Any) -> None:
        x = self._columns(node, 0)
        if node.input[1] != ASKED_INPUT or attributes(node).get("axis", 0) != 1 or x.head:
            raise refuse(node)
        y = self._new(x.width, "asked")
        self.ops.append({"op": "pick", "x": x.operand, "y": y.operand, "width": x.width})
        self.values[node.output[0]] = y

    def _top_k(self, node: Any) -> None:
        x = self._columns(node, 0)
        (k,) = self._numbers(node, 1)
        largest = attributes(node).get("largest", 1)
        if self.buffers[x.buffer]["rows"] != "asked" or not largest or attributes(node).get("axis", -1) not in (-1, 2):
            raise refuse(node)
        self.ops.append({"op": "top_k", "x": x.operand, "width": x.width, "k": int(k)})

    def _reshape(self, node: Any) -> None:
        """Only the two that split and join heads: [0, 0, heads, head_dim] and [0, 0, width]."""
        x, shape = self._columns(node, 0), [int(size) for size in self._numbers(node, 1)]
        if len(shape) not in (3, 4) or shape[:2] not in ([0, 0], [1, -1]):
            raise refuse(node)
        head = 0 if len(shape) == 3 else shape[3] if shape[3] > 0 else x.width // shape[2]
        self.values[node.output[0]] = replace(x, head=head)

    def _split(self, node: Any) -> None:
        x = self._columns(node, 0)
        if attributes(node).get("axis", 0) not in (-1, 2) or x.head:
            raise refuse(node)
        sizes = [x.width // len(node.output)] * len(node.output)
        if len(node.input) > 1 and node.input[1]:
            sizes = [int(size) for size in self._numbers(node, 1)]
        start = x.start
        for name, size in zip(node.output, sizes, strict=True):
            self.values[name] = Columns(x.buffer, start, size)
            start += size

    def _slice(self, node: Any) -> None:
        x = self._columns(node, 0)
        start, end, axis = ([int(number) for number in self._numbers(node, i)] for i in (1, 2, 3))
        step = [int(number) for number in self._numbers(node, 4)] if len(node.input) > 4 else [1]
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
        self.values[node.output[0]] = Activated(kind, self._columns(node, 0))

    def _arithmetic(self, node: Any) -> None:
        combine = node.op_type.lower()
        a, b = (self.values.get(name) for name in node.input)
        if combine == "mul":
            for gate, x in ((a, b), (b, a)):
                if isinstance(gate, Activated) and gate.kind == "sigmoid" and gate.of == x:
                    self.values[node.output[0]] = Activated("silu", gate.of)
                    return
        if combine in ("mul", "add") and (a is None or isinstance(b, Activated)):
            node = _swapped(node)
            a, b = b, a
        first = a if isinstance(a, Activated) else self._columns(node, 0)
        width = first.of.width if isinstance(first, Activated) else first.width
        if b is not None:
            second = self._columns(node, 1)
            if second.width != width:
                raise refuse(node)
            y = self._emit_map(first, combine, width, b=second.operand)
        else:
            constant = self._constant(node, 1)
            if constant.elements == 1:
                y = self._emit_map(first, combine, width, scalar=self._numbers(node, 1)[0])
            elif constant.elements == width and constant.shape[-1] == width:
                y = self._emit_map(first, combine, width, vector=self.constants.number(constant))
            else:
                raise refuse(node)
        self.values[node.output[0]] = y


def _swapped(node: Any) -> Any:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [node.input[1], node.input[0]]
    return copy


def derive(model: Any) -> dict[str, Any]:
    """The plan of a ModelProto, its weights left on disk. Raises PlanError where the kernels lack what it needs."""
    return Planner(model).plan()


def write(model: Any, target: Path) -> None:
    """Write the plan of ``model`` as JSON to ``target``. Raises PlanError, and then writes nothing."""
    text = json.dumps(derive(model), separators=(",", ":"), sort_keys=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(target)
