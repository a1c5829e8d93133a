"""Constants of a graph as places in its files: casts, negations, splits and quotients resolved without copying."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import onnx
from onnx import numpy_helper

from exporter.graph import attributes, is_external, where

DTYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT8: "int8",
}
BYTES = {"float32": 4, "float16": 2, "uint8": 1, "int8": 1}


class PlanError(Exception):
    """The CPU session's kernels cannot run this graph. The message is a sentence."""


def refuse(node: Any) -> PlanError:
    """The error for a node that the kernels do not know, or not in this form."""
    return PlanError(
        f"The CPU kernels do not know {node.op_type} as {node.name or node.output[0]} uses it, "
        "so this model runs on ORT Web only on the CPU."
    )


@dataclass(frozen=True)
class Stored:
    """Part of the initializer ``name``, from element ``start`` on, as ``shape``; casts are left to the reader."""

    name: str
    start: int
    shape: tuple[int, ...]
    dtype: str
    negated: bool = False

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Product:
    """Stored numbers, each times some integers: how GGUF's K formats keep scales. ``values`` [n], ``factors`` [n · k].

    ``factors`` has the shape of the whole.
    """

    values: Stored
    factors: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.factors.shape

    @property
    def elements(self) -> int:
        return self.factors.elements


@dataclass(frozen=True)
class Quotient:
    """An elementwise quotient of two constants of one shape, plus ``shift``: how float zero points are written."""

    numerator: Stored | Product
    denominator: Stored | Product
    shift: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.denominator.shape

    @property
    def elements(self) -> int:
        return self.denominator.elements


Operand = Stored | Product
Constant = Operand | Quotient


class Constants:
    """The constants of a graph by name, and the table of ``tensors`` of the plan that refers to them."""

    def __init__(self, model: Any) -> None:
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.tensors: list[dict[str, Any]] = []
        self.known: dict[str, Constant] = {}
        for name, tensor in self.initializers.items():
            if tensor.data_type in DTYPES:
                self.known[name] = Stored(name, 0, tuple(tensor.dims), DTYPES[tensor.data_type])

    def get(self, name: str) -> Constant | None:
        return self.known.get(name)

    def numbers(self, node: Any, index: int) -> list[float]:
        """The values of a small constant input. Raises PlanError if it is none."""
        name = node.input[index] if len(node.input) > index else ""
        stored = self.known.get(name)
        tensor = self.initializers.get(stored.name if isinstance(stored, Stored) else name)
        if tensor is None or is_external(tensor):
            raise refuse(node)
        whole: list[float] = numpy_helper.to_array(tensor).reshape(-1).tolist()
        if not isinstance(stored, Stored):
            return whole
        values = whole[stored.start : stored.start + stored.elements]
        return [-value for value in values] if stored.negated else values

    def fold(self, node: Any) -> bool:
        """Resolve ``node`` if it only rearranges constants; False if it computes with activations."""
        first = self.known.get(node.input[0]) if node.input else None
        if node.op_type == "Constant":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            self.initializers[tensor.name] = tensor
            if tensor.data_type in DTYPES:
                self.known[tensor.name] = Stored(tensor.name, 0, tuple(tensor.dims), DTYPES[tensor.data_type])
            return True
        if first is None:
            return False
        fold = {
            "Cast": self._cast, "Identity": self._identity, "Neg": self._negate, "Div": self._divide,
            "Mul": self._multiply, "Add": self._add, "Split": self._split, "Slice": self._slice,
            "Reshape": self._reshape,
        }.get(node.op_type)  # fmt: skip
        return fold is not None and fold(node, first)

    def number(self, stored: Stored) -> int:
        """The number of ``stored`` in ``tensors``; the same place is listed once."""
        tensor = self.initializers[stored.name]
        entry: dict[str, Any] = {"dtype": stored.dtype, "elements": stored.elements}
        size = BYTES[stored.dtype]
        if is_external(tensor):
            place = where(tensor)
            entry |= {"file": place["location"], "offset": int(place.get("offset", 0)) + stored.start * size}
        else:
            raw = numpy_helper.to_array(tensor).tobytes()
            raw = raw[stored.start * size : (stored.start + stored.elements) * size]
            entry["data"] = base64.b64encode(raw).decode()
        if stored.negated:
            raise PlanError(f"{stored.name} is used with the other sign, which the CPU kernels do not know.")
        if entry not in self.tensors:
            self.tensors.append(entry)
        return self.tensors.index(entry)

    def _cast(self, node: Any, value: Constant) -> bool:
        """To float32, which holds every value as it is; another type would round or wrap what the reader does not."""
        if attributes(node)["to"] != onnx.TensorProto.FLOAT:
            return False
        self.known[node.output[0]] = value
        return True

    def _identity(self, node: Any, value: Constant) -> bool:
        self.known[node.output[0]] = value
        return True

    def _negate(self, node: Any, value: Constant) -> bool:
        if isinstance(value, Quotient) and isinstance(value.numerator, Stored) and not value.shift:
            value = replace(value, numerator=replace(value.numerator, negated=not value.numerator.negated))
        elif isinstance(value, Stored):
            value = replace(value, negated=not value.negated)
        else:
            return False
        self.known[node.output[0]] = value
        return True

    def _divide(self, node: Any, value: Constant) -> bool:
        other = self.known.get(node.input[1])
        if other is None or isinstance(value, Quotient) or isinstance(other, Quotient) or value.shape != other.shape:
            return False
        if isinstance(other, Stored) and other.negated:
            if not isinstance(value, Stored):
                return False
            value, other = replace(value, negated=not value.negated), replace(other, negated=False)
        self.known[node.output[0]] = Quotient(value, other)
        return True

    def _multiply(self, node: Any, value: Constant) -> bool:
        """[n, 1] times integers [n, k]."""
        other = self.known.get(node.input[1])
        if not (isinstance(value, Stored) and isinstance(other, Stored)) or other.dtype not in ("uint8", "int8"):
            return False
        if len(value.shape) != 2 or value.shape != (other.shape[0], 1) or value.negated:
            return False
        self.known[node.output[0]] = Product(value, other)
        return True

    def _add(self, node: Any, value: Constant) -> bool:
        """A number on a Quotient."""
        if not isinstance(value, Quotient) or value.shift:
            return False
        (shift,) = self.numbers(node, 1)
        self.known[node.output[0]] = replace(value, shift=shift)
        return True

    def _split(self, node: Any, value: Constant) -> bool:
        if attributes(node).get("axis", 0) != 0:
            return False
        sizes = [value.shape[0] // len(node.output)] * len(node.output)
        if len(node.input) > 1 and node.input[1]:
            sizes = [int(size) for size in self.numbers(node, 1)]
        start = 0
        for name, size in zip(node.output, sizes, strict=True):
            self.known[name] = _rows(value, start, size)
            start += size
        return True

    def _slice(self, node: Any, value: Constant) -> bool:
        start, end = ([int(number) for number in self.numbers(node, i)] for i in (1, 2))
        axes = [int(number) for number in self.numbers(node, 3)] if len(node.input) > 3 else [0]
        steps = [int(number) for number in self.numbers(node, 4)] if len(node.input) > 4 else [1]
        if axes != [0] or steps != [1]:
            return False
        low, high, _ = slice(start[0], end[0]).indices(value.shape[0])
        self.known[node.output[0]] = _rows(value, low, high - low)
        return True

    def _reshape(self, node: Any, value: Constant) -> bool:
        sizes = [int(size) for size in self.numbers(node, 1)]
        if 0 in sizes:
            return False
        known = int(np.prod([size for size in sizes if size > 0], dtype=np.int64))
        self.known[node.output[0]] = _shaped(value, tuple(s if s > 0 else value.elements // known for s in sizes))
        return True


@overload
def _shaped(value: Operand, shape: tuple[int, ...]) -> Operand: ...
@overload
def _shaped(value: Quotient, shape: tuple[int, ...]) -> Quotient: ...
def _shaped(value: Constant, shape: tuple[int, ...]) -> Constant:
    if isinstance(value, Quotient):
        return Quotient(_shaped(value.numerator, shape), _shaped(value.denominator, shape), value.shift)
    if isinstance(value, Product):
        return replace(value, factors=replace(value.factors, shape=shape))
    return replace(value, shape=shape)


@overload
def _rows(value: Operand, start: int, rows: int) -> Operand: ...
@overload
def _rows(value: Quotient, start: int, rows: int) -> Quotient: ...
def _rows(value: Constant, start: int, rows: int) -> Constant:
    """``rows`` of the first axis from ``start`` on."""
    if isinstance(value, Quotient):
        return Quotient(_rows(value.numerator, start, rows), _rows(value.denominator, start, rows), value.shift)
    if isinstance(value, Product):
        each = value.elements // value.values.elements
        first, count = (number * value.elements // value.shape[0] // each for number in (start, rows))
        flat = replace(value.values, shape=(value.values.elements,))
        values, factors = _rows(flat, first, count), _rows(value.factors, start, rows)
        assert isinstance(values, Stored) and isinstance(factors, Stored)
        return Product(values, factors)
    each = int(np.prod(value.shape[1:], dtype=np.int64))
    return replace(value, start=value.start + start * each, shape=(rows, *value.shape[1:]))
