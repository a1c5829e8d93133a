"""What ORT Web's WebGPU gets wrong or leaves to the processor, said in operators that it gets right.

The rewritten graph computes the same on every runtime, so it passes the same gate. It may ask for two more inputs:
``position_ids`` int64 [1, tokens] and ``past_sequence_length`` int64 [1] (which Slice reads on the processor).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporter.graph import CONTRIB, attributes, replace_nodes

PREFIX = "handbill."


def cap_scores(model: Any) -> int:
    """Soft-cap attention outside of each GroupQueryAttention that should do it; the number of them.

    ORT Web 1.30 reads its ``softcap`` and does not apply it (contrib_ops/webgpu/bert/group_query_attention.cc), but it
    adds ``attention_bias`` to the scores. With s = q·k·scale, ``c·tanh(s/c) = s + c·(tanh(s/c) − s/c)``: the second
    term is that bias. It takes the scores once more, so keys and queries are rotated before the operator instead of in
    it. Masks and windows stay the operator's, and so does appending to the KV cache.
    """
    nodes = _Nodes(model)
    rewritten: list[Any] = []
    count = 0
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention" and attributes(node).get("softcap"):
            rewritten += _capped(nodes, node)
            count += 1
        else:
            rewritten.append(node)
    if count:
        replace_nodes(model.graph, rewritten)
        places = helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, [1, "sequence_length"])
        past = helper.make_tensor_value_info("past_sequence_length", onnx.TensorProto.INT64, [1])
        model.graph.input.extend([places, past])
    return count


def _capped(nodes: _Nodes, attention: Any) -> list[Any]:
    """The nodes that stand for ``attention``, which is packed or not, and rotates or not."""
    settings = attributes(attention)
    heads, kv_heads, cap = settings["num_heads"], settings["kv_num_heads"], settings["softcap"]
    q, k, v, past_key, past_value, seqlens_k, total, *tables = attention.input
    head_dim = nodes.sizes(past_key)[3]
    nodes.begin(attention.output[0])
    if not k:
        sizes = nodes.constant("packed", np.array([heads, kv_heads, kv_heads]) * head_dim)
        q, k, v = nodes.add("Split", [q, sizes], "qkv", outputs=3, axis=-1)
    if any(tables):
        cos, sin = tables[:2]
        turned = {
            "interleaved": settings.get("rotary_interleaved", 0),
            "rotary_embedding_dim": 2 * nodes.sizes(cos)[-1],
        }
        q, k = (
            nodes.one("RotaryEmbedding", [x, "position_ids", cos, sin], name, domain=CONTRIB, num_heads=count, **turned)
            for x, name, count in ((q, "q", heads), (k, "k", kv_heads))
        )
    # Keys of this step behind those in the KV cache: [1, kv_heads, total, head_dim].
    rows = nodes.one("Reshape", [k, nodes.constant("keys", np.array([0, 0, kv_heads, head_dim]))], "rows")
    new = nodes.one("Transpose", [rows], "new", perm=[0, 2, 1, 3])
    start, axis = nodes.constant("start", np.array([0])), nodes.constant("axis", np.array([2]))
    past = nodes.one("Slice", [past_key, start, "past_sequence_length", axis], "past")
    keys = nodes.one("Concat", [past, new], "all_keys", axis=2)
    # Queries [1, kv_heads, head_dim, group · tokens], scaled by 1/c: keys then need no transposed copy.
    scaled = nodes.one("Mul", [q, nodes.constant("scale", np.array(settings["scale"] / cap, np.float32))], "scaled")
    groups = nodes.constant("groups", np.array([-1, kv_heads, heads // kv_heads, head_dim]))
    grouped = nodes.one("Transpose", [nodes.one("Reshape", [scaled, groups], "groups")], "grouped", perm=[1, 3, 2, 0])
    columns = nodes.constant("columns", np.array([1, kv_heads, head_dim, -1]))
    scores = nodes.one("MatMul", [keys, nodes.one("Reshape", [grouped, columns], "columns")], "scores")
    change = nodes.one("Sub", [nodes.one("Tanh", [scores], "tanh"), scores], "change")
    change = nodes.one("Mul", [change, nodes.constant("cap", np.array(cap, np.float32))], "whole_change")
    change = nodes.one("Transpose", [change], "turned", perm=[0, 1, 3, 2])
    bias = nodes.one("Reshape", [change, nodes.constant("heads", np.array([1, heads, -1, 0]))], "bias")
    inputs = [q, k, v, past_key, past_value, seqlens_k, total, "", "", "", bias]
    kept = {key: value for key, value in settings.items() if key not in ("softcap", "do_rotary")}
    rest = helper.make_node("GroupQueryAttention", inputs, list(attention.output), domain=CONTRIB, **kept)
    return [*nodes.made, rest]


def choose_tables(model: Any) -> int:
    """Choose between longrope's tables (modules.RotaryTable) on the device; how many tables were chosen between.

    By ``total_sequence_length``, which the processor holds, the choice is made there. ``seqlens_k``, one less, is on
    the device.
    """
    nodes = _Nodes(model)
    producers = {output: node for node in model.graph.node for output in node.output}
    choices = {node.output[0]: chain for node in model.graph.node if (chain := _choice(node, producers))}
    by_processor = {link.output[0] for chain in choices.values() for link in chain}
    rewritten: list[Any] = []
    for node in model.graph.node:
        if node.output[0] in choices:
            greater = choices[node.output[0]][1]
            nodes.begin(node.output[0])
            last = nodes.constant("last", np.array([nodes.number(greater.input[1]) - 1], np.int32))
            past = nodes.one("Greater", ["seqlens_k", last], "past")
            short, long = (
                nodes.one("Gather", [node.input[0], nodes.constant("table", np.array(index))], f"table_{index}", axis=0)
                for index in (0, 1)
            )
            rewritten += [*nodes.made, helper.make_node("Where", [past, long, short], list(node.output))]
        elif node.output[0] not in by_processor:
            rewritten.append(node)
    if choices:
        replace_nodes(model.graph, rewritten)
        read = {name for node in rewritten for name in node.input}
        kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    return len(choices)


def _choice(node: Any, producers: dict[str, Any]) -> list[Any]:
    """The three nodes that say which of two tables ``node`` gathers; [] where it gathers anything else."""
    chain: list[Any] = []
    name = node.input[1] if node.op_type == "Gather" else ""
    for kind in ("Cast", "Greater", "Cast"):
        link = producers.get(name)
        if link is None or link.op_type != kind:
            return []
        chain.append(link)
        name = link.input[0]
    return chain if name == "total_sequence_length" else []


class _Nodes:
    """Makes nodes under names that begin with one of the graph's, and constants that equal ones share."""

    def __init__(self, model: Any) -> None:
        self.graph = model.graph
        self.made: list[Any] = []
        self._name = ""
        self._sizes: dict[str, list[int]] = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        for value in model.graph.input:
            self._sizes[value.name] = [size.dim_value for size in value.type.tensor_type.shape.dim]

    def begin(self, name: str) -> None:
        self.made, self._name = [], name

    def sizes(self, name: str) -> list[int]:
        """The shape of a graph input (0 for what is not fixed) or an initializer."""
        return self._sizes[name]

    def constant(self, name: str, array: Any) -> str:
        """An initializer that holds ``array``, named after both: equal ones are one."""
        whole = f"{PREFIX}{name}_" + "_".join(str(each) for each in array.ravel())
        if whole not in self._sizes:
            self._sizes[whole] = list(array.shape)
            self.graph.initializer.append(numpy_helper.from_array(array, whole))
        return whole

    def number(self, name: str) -> int:
        """The initializer ``name``, which holds one number."""
        (tensor,) = (tensor for tensor in self.graph.initializer if tensor.name == name)
        return int(numpy_helper.to_array(tensor).item())

    def add(self, kind: str, inputs: list[str], name: str, outputs: int, **settings: Any) -> list[str]:
        names = [f"{self._name}.{name}{number or ''}" for number in range(outputs)]
        self.made.append(helper.make_node(kind, inputs, names, **settings))
        return names

    def one(self, kind: str, inputs: list[str], name: str, **settings: Any) -> str:
        return self.add(kind, inputs, name, 1, **settings)[0]
