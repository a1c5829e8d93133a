"""A one-layer model with the exported graph's inputs and outputs, small enough to check by hand in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from handbill.manifest import KVLayout

HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, TOP = 4, 2, 8, 96, 64
HIDDEN = HEADS * HEAD_DIM
KV = KVLayout(dtype="float32", layers=1, kv_heads=KV_HEADS, head_dim=HEAD_DIM)

Floats = npt.NDArray[np.float32]


def weights(seed: int = 0) -> dict[str, Floats]:
    """The float32 matrices, [in, out] each (embedding: [vocabulary, hidden])."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embedding": (VOCABULARY, HIDDEN),
        "q": (HIDDEN, HIDDEN),
        "k": (HIDDEN, KV_HEADS * HEAD_DIM),
        "v": (HIDDEN, KV_HEADS * HEAD_DIM),
        "head": (HIDDEN, VOCABULARY),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}


def write(path: Path, seed: int = 0) -> None:
    """Write the graph to ``path``."""
    node = helper.make_node
    kv_inputs = ("past_key_values.0.key", "past_key_values.0.value")
    nodes = [
        node("Gather", ["embedding", "input_ids"], ["x"]),
        node("MatMul", ["x", "q"], ["query"]),
        node("MatMul", ["x", "k"], ["key"]),
        node("MatMul", ["x", "v"], ["value"]),
        node(
            "GroupQueryAttention",
            ["query", "key", "value", *kv_inputs, "seqlens_k", "total_sequence_length"],
            ["attended", "present.0.key", "present.0.value"],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
        ),
        node("Gather", ["attended", "positions"], ["asked"], axis=1),
        node("MatMul", ["asked", "head"], ["logits"]),
        node("TopK", ["logits", "top"], ["topk_logits", "topk_ids"]),
    ]
    past = [1, KV_HEADS, "past", HEAD_DIM]
    present = [1, KV_HEADS, "total", HEAD_DIM]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            value("input_ids", TensorProto.INT64, [1, "tokens"]),
            value("positions", TensorProto.INT64, ["n"]),
            value("seqlens_k", TensorProto.INT32, [1]),
            value("total_sequence_length", TensorProto.INT32, []),
            value("past_key_values.0.key", TensorProto.FLOAT, past),
            value("past_key_values.0.value", TensorProto.FLOAT, past),
        ],
        [
            value("logits", TensorProto.FLOAT, [1, "n", VOCABULARY]),
            value("topk_logits", TensorProto.FLOAT, [1, "n", TOP]),
            value("topk_ids", TensorProto.INT64, [1, "n", TOP]),
            value("present.0.key", TensorProto.FLOAT, present),
            value("present.0.value", TensorProto.FLOAT, present),
        ],
        [
            *(numpy_helper.from_array(array, name) for name, array in weights(seed).items()),
            numpy_helper.from_array(np.array([TOP]), "top"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def logits(ids: list[int], seed: int = 0) -> Floats:
    """What the graph computes, in NumPy: [len(ids), vocabulary]."""
    w = weights(seed)
    x = w["embedding"][ids]
    heads = lambda name, count: (x @ w[name]).reshape(len(ids), count, HEAD_DIM).transpose(1, 0, 2)  # noqa: E731
    key, value = (heads(name, KV_HEADS).repeat(HEADS // KV_HEADS, axis=0) for name in ("k", "v"))
    scores = heads("q", HEADS) @ key.transpose(0, 2, 1) / np.sqrt(HEAD_DIM)
    scores[:, np.triu(np.ones((len(ids), len(ids)), bool), 1)] = -np.inf
    share = np.exp(scores - scores.max(-1, keepdims=True))
    attended = (share / share.sum(-1, keepdims=True)) @ value
    result: Floats = attended.transpose(1, 0, 2).reshape(len(ids), HIDDEN) @ w["head"]
    return result
