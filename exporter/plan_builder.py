"""A plan while it grows: the graph's values, the buffers they lie in, and the operations so far."""

from __future__ import annotations

from typing import Any

from exporter.plan_tensors import Constants, Stored, refuse
from exporter.plan_values import Activated, Columns
from exporter.plan_weights import WeightTable

Op = dict[str, Any]
"""One operation, as plan.json has it."""


class Builder:
    """What the operators of ``model`` read their operands from and add their operations to.

    ``values`` are Columns, or what waits for the operation that reads it (Activated, LowRank), by name in the graph.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.constants = Constants(model)
        self.weights = WeightTable(self.constants)
        self.values: dict[str, Any] = {}
        self.buffers: list[dict[str, Any]] = []
        self.ops: list[Op] = []

    def new(self, width: int, rows: str, head: int = 0) -> Columns:
        """All ``width`` columns of another buffer, of as many ``rows`` as there are tokens or asked positions."""
        self.buffers.append({"rows": rows, "width": width})
        return Columns(len(self.buffers) - 1, 0, width, head)

    def columns(self, node: Any, index: int) -> Columns:
        """Input ``index`` as columns of a buffer; an activation that waits is computed now."""
        value = self.values.get(node.input[index])
        if isinstance(value, Activated):
            value = self.emit_map(value, "none", value.of.width)
            self.values[node.input[index]] = value
        if not isinstance(value, Columns):
            raise refuse(node)
        return value

    def emit_map(self, a: Columns | Activated, combine: str, width: int, **second: Any) -> Columns:
        """Add an elementwise operation: ``a``, or what its activation makes of it, with the operand ``second``."""
        kind, of = (a.kind, a.of) if isinstance(a, Activated) else ("none", a)
        y = self.new(width, self.buffers[of.buffer]["rows"], of.head)
        op = {"op": "map", "activation": kind, "combine": combine, "a": of.operand, "width": width, "y": y.operand}
        self.ops.append(op | second)
        return y

    def constant(self, node: Any, index: int) -> Stored:
        """Input ``index``, which a shard or the graph holds."""
        value = self.constants.get(node.input[index])
        if not isinstance(value, Stored):
            raise refuse(node)
        return value

    def numbers(self, node: Any, index: int) -> list[float]:
        """The same as numbers."""
        return self.constants.numbers(node, index)

    def optional(self, node: Any, index: int) -> Any:
        """The constant that input ``index`` is, None where the node has none there."""
        return self.constants.get(node.input[index]) if len(node.input) > index and node.input[index] else None
