"""Attention in a plan: what it reads, its KV caches, and longrope's choice between two rotary tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exporter.graph import attributes
from exporter.plan_builder import Builder, Op
from exporter.plan_tensors import Stored, refuse
from exporter.plan_values import Length, Tables

TOTAL_INPUT = "total_sequence_length"
NO_AXES_ATTENTION = ("smooth_softmax", "qk_output", "no_causal")


class AttentionBuilder(Builder):
    """A Builder that knows GroupQueryAttention. ``context`` counts the positions in rotary tables, 0 without."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.caches: list[dict[str, int]] = []
        self.context = 0
        self.pasts: set[str] = set()

    def attend(self, node: Any) -> None:
        settings = attributes(node)
        if any(node.input[9:]) or any(settings.get(name) for name in NO_AXES_ATTENTION):
            raise refuse(node)
        heads, kv_heads = settings["num_heads"], settings["kv_num_heads"]
        q = self.columns(node, 0)
        if node.input[1]:
            head_dim = q.width // heads
            k, v = self.columns(node, 1), self.columns(node, 2)
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
            op["rotary"] = self._rotary(node) | {"interleaved": bool(settings.get("rotary_interleaved", 0))}
        y = self.new(heads * head_dim, "tokens")
        self.ops.append(op | {"y": y.operand})
        self.caches.append({"kv_heads": kv_heads, "head_dim": head_dim})
        self.values[node.output[0]] = y

    def _rotary(self, node: Any) -> dict[str, int]:
        cos, sin = (self.values.get(node.input[index]) for index in (7, 8))
        if not (isinstance(cos, Tables) and isinstance(sin, Tables)):
            cos, sin = (Tables(self.constant(node, index)) for index in (7, 8))
        rows, half = cos.stored.shape[-2:]
        if cos.stored.shape != sin.stored.shape or cos.switch != sin.switch:
            raise refuse(node)
        self.context = min(self.context or rows, rows)
        number = self.constants.number
        rotary = {"cos": number(cos.stored), "sin": number(sin.stored), "dim": 2 * half}
        return rotary | ({"switch": cos.switch} if cos.switch else {})

    def cast_length(self, node: Any) -> None:
        """A Cast of the step's total length, or of whether that is past a switch, to another type of number."""
        length = Length() if node.input[0] == TOTAL_INPUT else self.values.get(node.input[0])
        if not isinstance(length, Length):
            raise refuse(node)
        self.values[node.output[0]] = length

    def compare_length(self, node: Any) -> None:
        """total length > a number: past the switch of longrope."""
        length, (switch, *others) = self.values.get(node.input[0]), self.numbers(node, 1)
        if not isinstance(length, Length) or length.switch or others or switch < 1:
            raise refuse(node)
        self.values[node.output[0]] = Length(int(switch))

    def choose_table(self, node: Any) -> bool:
        """Whether Gather ``node`` takes the first of two tables up to the switch, the second past it."""
        length, tables = self.values.get(node.input[1]), self.constants.get(node.input[0])
        if not isinstance(length, Length):
            return False
        if not isinstance(tables, Stored) or not length.switch or attributes(node).get("axis", 0):
            raise refuse(node)
        if len(tables.shape) != 3 or tables.shape[0] != 2:
            raise refuse(node)
        self.values[node.output[0]] = Tables(tables, length.switch)
        return True
