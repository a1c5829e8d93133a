"""Random models in the exact form the exporter gives them: block-quantized, external data, constants folded by ORT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Factored = tuple[Array, Array | None]
"""Scales or minima float16 [rows, groups]; or [rows, groups / 2], and integer factors [rows, groups]."""
SHARD = "weights-00.bin"


@dataclass(frozen=True)
class Shape:
    """What a random model looks like; the defaults are a small Llama with packed QKV in Q4_1's form."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    inner: int = 96
    vocabulary: int = 320
    context: int = 256
    bits: int = 4
    block: int = 32
    zeros: str = "minima"  # minima, packed, none
    factors: bool = False  # scales and minima as floats for two blocks, times an integer for each
    shift: int = 0  # of the codes, where they have minima
    window: int = -1
    softcap: float = 0.0
    rotary: float = 1.0
    switch: int = 0  # longrope's: the total length from which on a step's rotation is the second table's
    norm: str = "SimplifiedLayerNormalization"  # or LayerNormalization
    head_norm: bool = False
    activation: str = "silu"
    bias: bool = False
    embedding_bits: int = 8
    final_cap: float = 0.0
    embedding_scale: float = 1.0
    branches: bool = False  # one for an adapter at every matrix but the embedding's


class Builder:
    """Collects nodes and initializers; big ones go into one shard at ``folder``."""

    def __init__(self, folder: Path, shape: Shape, seed: int) -> None:
        self.folder, self.shape = folder, shape
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.data = bytearray()
        self.scales: list[tuple[str, Factored, Factored | None]] = []
        self.branches: list[Any] = []  # graph inputs

    def node(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **settings: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **settings))
        return outputs[0]

    def contrib(self, kind: str, inputs: list[str], outputs: list[str], **settings: Any) -> str:
        return self.node(kind, inputs, outputs, "com.microsoft", **settings)

    def constant(self, name: str, array: Array, dims: list[int] | None = None) -> str:
        """An initializer; past 256 bytes in the shard."""
        if array.nbytes <= 256:
            self.initializers.append(numpy_helper.from_array(array, name))
            return name
        self.data += b"\0" * (-len(self.data) % 64)
        self.initializers.append(self._external(name, array, dims or list(array.shape), len(self.data)))
        self.data += array.tobytes()
        return name

    def _external(self, name: str, array: Array, dims: list[int], offset: int) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", SHARD), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def linear(self, x: str, name: str, rows: int, columns: int) -> str:
        shape, groups = self.shape, -(-columns // self.shape.block)
        codes = self.rng.integers(0, 256, (rows, groups, shape.block * shape.bits // 8), np.uint8)
        size = 1.5 / (1 << shape.bits) / columns**0.5
        scales, minima = self._scales(size, rows, groups)
        inputs = [x, self.constant(f"{name}.codes", codes), f"{name}.scales"]
        if minima:
            inputs.append(f"{name}.zeros")
        if shape.zeros == "packed":
            width = -(-groups * shape.bits // 8)
            zeros = self.rng.integers(96, 160, (rows, width), np.uint8) if shape.bits == 8 else None
            nibbles = self.rng.integers(6, 11, (2, rows, width), np.uint8)
            inputs.append(self.constant(f"{name}.zeros", nibbles[0] | nibbles[1] << 4 if zeros is None else zeros))
        if shape.bias:
            bias = self.rng.normal(0, 0.1, rows).astype(np.float32)
            inputs += [""] * (5 - len(inputs)) + [self.constant(f"{name}.bias", bias)]
        self.scales.append((name, scales, minima))
        settings = {"K": columns, "N": rows, "bits": shape.bits, "block_size": shape.block}
        if not shape.branches:
            return self.contrib("MatMulNBits", inputs, [name], **settings)
        value = helper.make_tensor_value_info
        self.branches += [
            value(f"{name}.lora_a", TensorProto.FLOAT, [columns, f"{name}.rank"]),
            value(f"{name}.lora_b", TensorProto.FLOAT, [f"{name}.rank", rows]),
        ]
        self.contrib("MatMulNBits", inputs, [f"{name}.base"], **settings)
        self.node("MatMul", [x, f"{name}.lora_a"], [f"{name}.low_rank"])
        self.node("MatMul", [f"{name}.low_rank", f"{name}.lora_b"], [f"{name}.added"])
        return self.node("Add", [f"{name}.base", f"{name}.added"], [name])

    def _scales(self, size: float, rows: int, groups: int) -> tuple[Factored, Factored | None]:
        """Scales of about ``size`` and, where the shape has them, minima of the sign that the bank stores."""
        shape, rng = self.shape, self.rng
        middle = (1 << shape.bits) / 2 - shape.shift
        if not shape.factors:
            scales = (size * rng.uniform(1, 4, (rows, groups))).astype(np.float16)
            minima = (scales * (middle + rng.uniform(-1, 1, scales.shape))).astype(np.float16)
            return (scales, None), (minima, None) if shape.zeros == "minima" else None
        scales = (size / 32 * rng.uniform(1, 2, (rows, groups // 2))).astype(np.float16)
        factors = rng.integers(12, 64, (rows, groups), np.uint8)
        minima = (scales * middle).astype(np.float16)
        if shape.zeros == "minima":
            return (scales, factors), (minima, factors + rng.integers(0, 2, factors.shape, np.uint8))
        return (scales, (factors * rng.choice([-1, 1], factors.shape)).astype(np.int8)), None

    def bank(self) -> list[Any]:
        """The nodes that split the one tensor of scales (and of negated minima) into a piece per matrix."""
        sizes = np.array(
            [(scales[0] if scales[1] is None else scales[1]).size for _, scales, _ in self.scales], np.int64
        )
        self.initializers.append(numpy_helper.from_array(sizes, "bank.sizes"))
        nodes = self._whole("bank.scales", [scales for _, scales, _ in self.scales])
        minima = [each for _, _, each in self.scales if each]
        names = [name for name, _, _ in self.scales]
        nodes.append(
            helper.make_node("Split", ["bank.scales", "bank.sizes"], [f"{name}.scales" for name in names], axis=0)
        )
        if minima:
            nodes += self._whole("bank.minima", minima)
            nodes.append(helper.make_node("Div", ["bank.minima", "bank.scales"], ["bank.zeros"]))
            zeros = "bank.zeros"
            if self.shape.shift:
                self.constant("bank.shift", np.array(self.shape.shift, np.float32))
                nodes.append(helper.make_node("Add", [zeros, "bank.shift"], ["bank.shifted"]))
                zeros = "bank.shifted"
            nodes.append(helper.make_node("Split", [zeros, "bank.sizes"], [f"{name}.zeros" for name in names], axis=0))
        return nodes

    def _whole(self, name: str, parts: list[Factored]) -> list[Any]:
        """The nodes that make ``name``, float32 and flat, of what is stored."""
        values = np.concatenate([values.ravel() for values, _ in parts])
        factors = [factors.ravel() for _, factors in parts if factors is not None]
        if not factors:
            self.constant(f"{name}.half", values)
            return [helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)]
        self.constant(f"{name}.half", values[:, None])
        self.constant(f"{name}.integers", np.concatenate(factors).reshape(len(values), -1))
        self.constant(f"{name}.flat", np.array([-1]))
        return [
            helper.make_node("Cast", [f"{name}.half"], [f"{name}.float"], to=TensorProto.FLOAT),
            helper.make_node("Cast", [f"{name}.integers"], [f"{name}.factors"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}.float", f"{name}.factors"], [f"{name}.products"]),
            helper.make_node("Reshape", [f"{name}.products", f"{name}.flat"], [name]),
        ]

    def norm_weight(self, name: str, width: int) -> str:
        return self.constant(name, self.rng.uniform(0.5, 1.5, width).astype(np.float32))


def build(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Write model.onnx and its shard into ``folder``; the path of model.onnx."""
    b = Builder(folder, shape, seed)
    groups = -(-shape.hidden // shape.block)
    bits = shape.embedding_bits
    codes = b.rng.integers(0, 256, (shape.vocabulary, groups, shape.block * bits // 8), np.uint8)
    scales = b.rng.uniform(1, 2, (shape.vocabulary, groups)).astype(np.float16) * np.float16(2 / (1 << bits))
    table = b.constant("table.codes", codes)
    alias = TensorProto()
    alias.CopyFrom(b.initializers[-1])
    alias.name, alias.dims[:] = "table.alias", [shape.vocabulary, codes[0].size]
    b.initializers.append(alias)
    b.node("Cast", [b.constant("table.half", scales)], ["table.scales"], to=TensorProto.FLOAT)
    settings = {"gather_axis": 0, "quantize_axis": 1, "block_size": shape.block, "bits": bits}
    x = b.contrib("GatherBlockQuantized", ["table.alias", "input_ids", "table.scales"], ["embedded"], **settings)
    if shape.embedding_scale != 1.0:
        scale = b.constant("embedding.scale", np.array(shape.embedding_scale, np.float32))
        x = b.node("Mul", [x, scale], ["embedded.scaled"])
    half = int(shape.head_dim * shape.rotary) // 2
    angles = np.arange(shape.context)[:, None] * 10000.0 ** (-np.arange(half) / half)
    _tables(b, angles)
    residual, pending = x, ""
    for layer in range(shape.layers):
        normed, residual = _norm(b, residual, pending, f"l{layer}.in")
        attended = _attention(b, normed, layer)
        pending = b.linear(attended, f"l{layer}.o", shape.hidden, shape.heads * shape.head_dim)
        normed, residual = _norm(b, residual, pending, f"l{layer}.post")
        pending = _mlp(b, normed, f"l{layer}")
    normed, _ = _norm(b, residual, pending, "final")
    asked = b.node("Gather", [normed, "positions"], ["asked"], axis=1)
    b.contrib(
        "MatMulNBits", [asked, table, "table.scales"], ["logits" if not shape.final_cap else "raw"],
        K=shape.hidden, N=shape.vocabulary, bits=bits, block_size=shape.block,
    )  # fmt: skip
    if shape.final_cap:
        cap = b.constant("cap", np.array(shape.final_cap, np.float32))
        b.node("Div", ["raw", cap], ["divided"])
        b.node("Tanh", ["divided"], ["tanh"])
        b.node("Mul", ["tanh", cap], ["logits"])
    b.node("TopK", ["logits", b.constant("k", np.array([64]))], ["topk_logits", "topk_ids"])
    return _save(b)


def _tables(b: Builder, angles: Array) -> None:
    """The values cos and sin: the tables of ``angles`` [context, half], or a choice between those and slower ones."""
    switch, functions = b.shape.switch, {"cos": np.cos, "sin": np.sin}
    if not switch:
        for name, function in functions.items():
            b.constant(name, function(angles).astype(np.float32))
        return
    b.node("Cast", ["total_sequence_length"], ["total"], to=TensorProto.INT64)
    b.node("Greater", ["total", b.constant("switch", np.array(switch))], ["past_switch"])
    b.node("Cast", ["past_switch"], ["table"], to=TensorProto.INT64)
    for name, function in functions.items():
        both = np.stack([function(angles), function(angles / 3)]).astype(np.float32)
        b.node("Gather", [b.constant(f"{name}.both", both), "table"], [name], axis=0)


def _norm(b: Builder, residual: str, pending: str, name: str) -> tuple[str, str]:
    kind, width = b.shape.norm, b.shape.hidden
    weights = [b.norm_weight(f"{name}.weight", width)]
    if kind == "LayerNormalization":
        weights.append(b.constant(f"{name}.shift", b.rng.normal(0, 0.3, width).astype(np.float32)))
    if not pending:
        return b.node(kind, [residual, *weights], [name], axis=-1, epsilon=1e-5), residual
    outputs = [name, "", "", f"{name}.sum"]
    b.contrib(f"Skip{kind}", [residual, pending, *weights], outputs, epsilon=1e-5)
    return name, outputs[3]


def _attention(b: Builder, x: str, layer: int) -> str:
    shape, name = b.shape, f"l{layer}"
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if shape.head_norm:
        inputs = []
        for part, width in (("q", q), ("k", kv), ("v", kv)):
            y = b.linear(x, f"{name}.{part}", width, shape.hidden)
            if part != "v":
                split = b.constant(f"{y}.split", np.array([0, 0, -1, shape.head_dim]))
                joined = b.constant(f"{y}.joined", np.array([0, 0, -1]))
                y = b.node("Reshape", [y, split], [f"{y}.heads"])
                weight = b.norm_weight(f"{y}.weight", shape.head_dim)
                y = b.node(shape.norm, [y, weight], [f"{y}.norm"], axis=-1, epsilon=1e-6)
                y = b.node("Reshape", [y, joined], [f"{y}.flat"])
            inputs.append(y)
    else:
        inputs = [b.linear(x, f"{name}.qkv", q + 2 * kv, shape.hidden), "", ""]
    past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
    present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
    tables = ["cos", "sin"] if shape.rotary else []
    return b.contrib(
        "GroupQueryAttention", [*inputs, *past, "seqlens_k", "total_sequence_length", *tables],
        [f"{name}.attended", *present], num_heads=shape.heads, kv_num_heads=shape.kv_heads, do_rotary=int(bool(tables)),
        scale=float(shape.head_dim**-0.5), local_window_size=shape.window, softcap=shape.softcap,
    )  # fmt: skip


def _mlp(b: Builder, x: str, name: str) -> str:
    shape = b.shape
    gate = b.linear(x, f"{name}.gate", shape.inner, shape.hidden)
    up = b.linear(x, f"{name}.up", shape.inner, shape.hidden)
    if shape.activation == "silu":
        sigmoid = b.node("Sigmoid", [gate], [f"{gate}.sigmoid"])
        gate = b.node("Mul", [gate, sigmoid], [f"{gate}.silu"])
    else:
        approximate = "tanh" if shape.activation == "gelu_tanh" else "none"
        gate = b.node("Gelu", [gate], [f"{gate}.gelu"], approximate=approximate)
    return b.linear(b.node("Mul", [gate, up], [f"{name}.gated"]), f"{name}.down", shape.hidden, shape.inner)


def _save(b: Builder) -> Path:
    shape, value = b.shape, helper.make_tensor_value_info
    inputs = [
        value("input_ids", TensorProto.INT64, [1, "tokens"]),
        value("positions", TensorProto.INT64, ["n"]),
        value("seqlens_k", TensorProto.INT32, [1]),
        value("total_sequence_length", TensorProto.INT32, []),
    ]
    outputs = [value("logits", TensorProto.FLOAT, [1, "n", shape.vocabulary])]
    outputs.append(value("topk_logits", TensorProto.FLOAT, [1, "n", 64]))
    outputs.append(value("topk_ids", TensorProto.INT64, [1, "n", 64]))
    for layer in range(shape.layers):
        for kind in ("key", "value"):
            axes = [1, shape.kv_heads, "past", shape.head_dim]
            inputs.append(value(f"past_key_values.{layer}.{kind}", TensorProto.FLOAT, axes))
            outputs.append(value(f"present.{layer}.{kind}", TensorProto.FLOAT, [*axes[:2], "total", axes[3]]))
    inputs += b.branches
    nodes = b.bank() + b.nodes
    graph = helper.make_graph(nodes, "random", inputs, outputs, b.initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (b.folder / SHARD).write_bytes(bytes(b.data))
    onnx.save(model, str(b.folder / "model.onnx"))
    return b.folder / "model.onnx"
