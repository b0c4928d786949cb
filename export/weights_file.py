"""weights.bin: a graph's large tensors beside it, and which of them are tables of embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from embedserve.artifact import WEIGHTS, Table
from export.families.graph_builder import LARGE_TENSOR
from export.libraries import quiet

# Operators that read some rows of a tensor and leave the rest alone.
_LOOKUPS = {"Gather", "EmbedLayerNormalization"}


def split(model: onnx.ModelProto, path: Path, *, shared: bool = False) -> None:
    """Write `model` as `path`, and its large tensors beside it; equal ones once, if `shared`.

    Not by onnx's own writer: it opens the file in C++ and calls a full disk a "rejected path".
    """
    places: dict[bytes, int] = {}
    with (path.parent / WEIGHTS).open("wb") as file:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < LARGE_TENSOR:
                continue
            digest = hashlib.sha256(tensor.raw_data).digest() if shared else b""
            place = places.get(digest, file.tell())
            set_external_data(tensor, WEIGHTS, place, len(tensor.raw_data))
            if place == file.tell():
                file.write(tensor.raw_data)
                if shared:
                    places[digest] = place
            tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())


def to_fp16(path: Path) -> onnx.ModelProto:
    """Convert the graph at `path` to half precision; the output stays float32.

    Pooling and the steps after it thus run in float32.
    """
    with quiet():
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model: onnx.ModelProto = convert_float_to_float16(
            onnx.load(path), keep_io_types=True, disable_shape_infer=True
        )
    split(model, path)
    return model


def tables(graph: onnx.GraphProto, precision: str) -> Iterator[Table]:
    """The floats of `precision` that are only read by look-ups of rows."""
    kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    readers: dict[str, set[str]] = {}
    for node in nodes(graph):
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for tensor in graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        is_looked_up = readers.get(tensor.name, {""}) <= _LOOKUPS
        if place and is_looked_up and tensor.data_type == kind:
            yield Table(tensor.name, int(place.get("offset", 0)), tuple(tensor.dims))


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, including those in branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)
