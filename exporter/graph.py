"""Passes over the traced graph: tidy it, fuse the residual norms, and move the weights into shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporter.errors import ExportError
from handbill.manifest import MAX_FILE_BYTES

SHARD_BYTES = 64 << 20
"""A shard is closed when the next tensor would take it past this; a larger tensor has a shard of its own."""

ALIGNMENT = 64
INLINE_BYTES = 256
"""Tensors up to this size stay inside the graph, and so do all int64 ones: shape inference reads those."""

CONTRIB = "com.microsoft"

_WITH_SKIP = {
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}


def load(path: Path) -> Any:
    """The ModelProto at ``path``, its external tensors left on disk."""
    return onnx.load(str(path), load_external_data=False)


def is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def where(tensor: Any) -> dict[str, str]:
    """location, offset and length of an external tensor, as text."""
    return {entry.key: entry.value for entry in tensor.external_data}


def attributes(node: Any) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def tidy(model: Any) -> None:
    """Constants become initializers; what only renames or reshapes an initializer becomes an initializer too."""
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        output = node.output[0]
        if node.op_type == "Constant":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = output
            initializers[output] = tensor
        elif node.op_type == "Identity" and node.input[0] in initializers:
            renamed[output] = node.input[0]
        elif node.op_type == "Reshape" and all(name in initializers for name in node.input):
            initializers[output] = _reshaped(initializers[node.input[0]], initializers[node.input[1]], output)
        else:
            kept.append(node)
    replace_nodes(graph, kept)
    used = {name for node in kept for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in initializers.items() if name in used)


def _reshaped(tensor: Any, shape: Any, name: str) -> Any:
    """``tensor`` under another name and shape: for an external one the same bytes, referred to twice."""
    alias = onnx.TensorProto()
    alias.CopyFrom(tensor)
    alias.name = name
    total = int(np.prod(list(tensor.dims), dtype=np.int64))
    wanted = [tensor.dims[i] if size == 0 else int(size) for i, size in enumerate(numpy_helper.to_array(shape))]
    known = int(np.prod([size for size in wanted if size != -1], dtype=np.int64))
    alias.dims[:] = [total // known if size == -1 else size for size in wanted]
    return alias


def fuse_residual_norms(model: Any) -> None:
    """Add → (Simplified)LayerNormalization becomes its Skip form, which hands on the sum as well."""
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    initializers = {tensor.name for tensor in graph.initializer}
    order = {id(node): index for index, node in enumerate(graph.node)}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    fused = set()
    for node in graph.node:
        if node.op_type not in _WITH_SKIP:
            continue
        add = producers.get(node.input[0])
        if add is None or add.op_type != "Add" or any(name in initializers for name in add.input):
            continue
        total, weights, normed = node.input[0], node.input[1:], node.output[0]
        if any(order[id(reader)] < order[id(node)] for reader in readers[total] if reader is not node):
            continue  # the sum is read before the norm runs
        epsilon = attributes(node)["epsilon"]
        node.op_type, node.domain = _WITH_SKIP[node.op_type], CONTRIB
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("epsilon", epsilon))
        node.input[:] = [*add.input, *weights]
        node.output[:] = [normed, "", "", total]
        fused.add(id(add))
    replace_nodes(graph, [node for node in graph.node if id(node) not in fused])


def set_accuracy_level(model: Any, level: int) -> None:
    """accuracy_level of every MatMulNBits: 0 computes in float32, 4 quantizes activations to int8 by block."""
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            for item in node.attribute:
                if item.name == "accuracy_level":
                    item.i = level


def refer(model: Any, tensors: dict[str, Any]) -> None:
    """Make the initializers named in ``tensors`` (torch, uint8) what they stand for: external, of the real shape."""
    for tensor in model.graph.initializer:
        real = tensors.get(tensor.name)
        if real is not None:
            tensor.ClearField("raw_data")
            tensor.dims[:] = list(real.shape)
            _place(tensor, tensor.name, 0, real.numel())


def shard(model: Any, tensors: dict[str, Any], folder: Path, report: Callable[[int], None]) -> list[Path]:
    """Move initializers into ``folder``/weights-NN.bin in the order of use, each once; ``tensors`` as for ``refer``.

    Rewrites the references of ``model``; returns the shards. ``report(bytes)`` is called as bytes are written. Raises
    ExportError for a tensor that is larger than a file of a page may be.
    """
    placed: dict[str, tuple[str, int]] = {}
    with _Shards(folder, report) as shards:
        for tensor in _in_order_of_use(model):
            external = is_external(tensor)
            name = where(tensor)["location"] if external else tensor.name
            size = int(where(tensor)["length"]) if external else len(tensor.raw_data)
            if external and size <= INLINE_BYTES:
                tensor.raw_data = tensors[name].numpy().tobytes()
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
            elif size > INLINE_BYTES and tensor.data_type != onnx.TensorProto.INT64:
                if size > MAX_FILE_BYTES:
                    raise ExportError(
                        f"{name} takes {size / 1e9:.2f} GB in one piece, and a file of a page has at most "
                        f"{MAX_FILE_BYTES / 1e9:.2f} GB; this model is too large for a page."
                    )
                if name not in placed:
                    placed[name] = shards.write(tensors[name].numpy().data.cast("B") if external else tensor.raw_data)
                tensor.ClearField("raw_data")
                _place(tensor, *placed[name], size)
    return shards.paths


def weight_bytes(model: Any) -> int:
    """Bytes of the external initializers, each once."""
    external = [where(tensor) for tensor in model.graph.initializer if is_external(tensor)]
    return sum({place["location"]: int(place["length"]) for place in external}.values())


class _Shards:
    """Files of about SHARD_BYTES, filled one after the other."""

    def __init__(self, folder: Path, report: Callable[[int], None]) -> None:
        self.folder, self.report = folder, report
        self.paths: list[Path] = []
        self.file: Any = None
        self.size = 0

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, data: Any) -> tuple[str, int]:
        """Append ``data`` (bytes, or a memoryview of them); the shard's name and the offset in it."""
        if self.file is None or self.size + len(data) > SHARD_BYTES:
            self.__exit__()
            self.paths.append(self.folder / f"weights-{len(self.paths):02}.bin")
            self.file, self.size = self.paths[-1].open("wb"), 0
        padding = -self.size % ALIGNMENT
        self.file.write(b"\0" * padding)
        offset = self.size + padding
        for start in range(0, len(data), 1 << 22):
            piece = data[start : start + (1 << 22)]
            self.file.write(piece)
            self.report(len(piece))
        self.size = offset + len(data)
        return self.paths[-1].name, offset


def _place(tensor: Any, location: str, offset: int, length: int) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for entry, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=entry, value=str(value))


def _in_order_of_use(model: Any) -> Iterable[Any]:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name in node.input:
            if name in tensors:
                yield tensors.pop(name)


def sum_form(model: Any, bits: tuple[int, ...] = (4, 8)) -> int:
    """Rewrite each MatMulNBits of ``bits`` with float zero points for runtimes that refuse those; the number of them.

    ``Σ x · s · (c - z)`` is ``Σ x · s · (c - middle) + Σ_blocks (Σ x) · s · (middle - z)``: the first term needs no
    zero points, the second is a small float MatMul of the activations' block sums, equally exact.
    """
    graph = model.graph
    zero_points = _float_zero_points(graph)
    rewritten: list[Any] = []
    made: dict[str, Any] = {"handbill.last": np.array([-1], np.int64)}
    sums: set[str] = set()
    count = 0
    for node in graph.node:
        shape = attributes(node)
        if node.op_type != "MatMulNBits" or shape["bits"] not in bits or not {*node.input[3:4]} & zero_points:
            rewritten.append(node)
            continue
        count += 1
        x, scales, zeros, output, size = (
            node.input[0],
            node.input[2],
            node.input[3],
            node.output[0],
            shape["block_size"],
        )
        if shape["K"] % size:
            raise ValueError(f"{output}: {shape['K']} columns are no multiple of the block size")
        middle = f"handbill.middle_{shape['bits']}"
        made[middle] = np.array(1 << (shape["bits"] - 1), np.float32)
        made[f"handbill.blocks_{size}"] = np.array([0, 0, -1, size], np.int64)
        made[f"{output}.shape"] = np.array([shape["N"], shape["K"] // size], np.int64)
        blocks = f"{x}.blocks_{shape['bits']}_{size}"  # by bits, so that a second call for others finds names free
        if blocks not in sums:
            sums.add(blocks)
            rewritten += [
                helper.make_node("Reshape", [x, f"handbill.blocks_{size}"], [blocks]),
                helper.make_node("ReduceSum", [blocks, "handbill.last"], [f"{blocks}.sums"], keepdims=0),
            ]
        rewritten += [
            helper.make_node("Sub", [middle, zeros], [f"{output}.shift"]),
            helper.make_node("Mul", [f"{output}.shift", scales], [f"{output}.flat"]),
            helper.make_node("Reshape", [f"{output}.flat", f"{output}.shape"], [f"{output}.rows"]),
            helper.make_node("Transpose", [f"{output}.rows"], [f"{output}.correction"], perm=[1, 0]),
            helper.make_node("MatMul", [f"{blocks}.sums", f"{output}.correction"], [f"{output}.corrected"]),
        ]
        bias = list(node.input[4:])
        node.input[:] = [*node.input[:3], *(["", *bias] if any(bias) else [])]
        node.output[0] = f"{output}.product"
        rewritten += [node, helper.make_node("Add", [f"{output}.product", f"{output}.corrected"], [output])]
    if count:
        replace_nodes(graph, rewritten)
        present = {tensor.name for tensor in graph.initializer}
        graph.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in made.items() if name not in present
        )
    return count


def _float_zero_points(graph: Any) -> set[str]:
    """Names of the zero points that modules.ScaleBank computes: a Div, to which an Add and a Split may follow."""
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "Div" or (node.op_type in ("Add", "Split") and node.input[0] in found):
            found.update(node.output)
    return found


def replace_nodes(graph: Any, nodes: list[Any]) -> None:
    """Make ``nodes`` the nodes of ``graph``; they may be its own."""
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)
