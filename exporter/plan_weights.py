"""The table of a plan's weights: packed values with their scales and zero points, by where they lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exporter.graph import attributes
from exporter.plan_tensors import Constants, Product, Quotient, Stored, refuse

BLOCK = 32
HALF = 16
"""The one smaller block that the kernels know, of GGUF's Q6_K."""


class WeightTable:
    """The plan's ``weights``, in ``entries``."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self.entries: list[dict[str, Any]] = []

    def add(
        self, node: Any, values: Stored, scales: Any, zeros: Any, rows: int, columns: int, bias: Stored | None = None
    ) -> int:
        """The number of these weights of ``node``; the same are listed once. Raises PlanError."""
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
        if bias is not None:
            weights["bias"] = number(bias)
        if weights not in self.entries:
            self.entries.append(weights)
        return self.entries.index(weights)

    def _scales(self, scales: Stored | Product, key: str) -> dict[str, int]:
        if isinstance(scales, Stored):
            return {key: self.constants.number(scales)}
        return {key: self.constants.number(scales.values), "factors": self.constants.number(scales.factors)}
