"""Converts a graph's products with weights to int8: one scale for each token and output column.

A scale for the whole batch, as libraries and hubs quantize "dynamically", changes a text's vector
with its neighbours in the pass. With one for each token's row, integers are exact whatever is
beside it, so the bits are the same in any batch.

Two things bring back most of what 8 bits lose (docs/models.md, Precision):
- SmoothQuant (https://arxiv.org/abs/2211.10438): columns of an activation that are large in all
  tokens leave few steps to the others. Each is divided by a factor, and its weights are multiplied
  by it. Activations that meet the same weights share their factors (ALBERT's layers share weights).
- What comes out of GELU has a known lowest value, so it uses all 256 steps above that one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from embedserve.arrays.types import Floats, Ints
from embedserve.artifact import WEIGHTS
from embedserve.model.onnx_backend import options
from export import weights_file
from export.files import refused

# Products of fewer rows or columns take less time than quantizing does.
_LEAST_SIZE = 32
# Activations are unsigned, around _ZERO where they have two signs; weights are signed: the only
# pair with fast kernels on x86-64.
_ZERO, _MOST, _ALL = 128, 127, 255
# A row of zeros has a scale, too.
_LEAST_TOP = 1e-12
# How far below zero an activation's values may be: GELU and its approximation.
_LOWEST: Mapping[str, float] = {"Gelu": 0.171, "BiasGelu": 0.171, "FastGelu": 0.171, "Relu": 0.0}
# SmoothQuant's migration strength: 0.5 to 0.65 are equal within the noise.
_MIGRATION = 0.5
_DOMAIN = "com.microsoft"

ColumnMaxima = Mapping[str, Floats]  # of each activation, the largest size (i,) of each column


def column_maxima(path: Path, sequences: Sequence[Ints]) -> ColumnMaxima:
    """Run the float32 graph at `path` on each sequence (t,) and look at what enters products.

    StartupError (65) when there is no product with weights.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    names = list(dict.fromkeys(node.input[0] for node in _products(graph)))
    if not names:
        raise refused(f"{path.name}: has no products with weights that int8 would speed up")
    del graph.output[:]
    for name in names:
        graph.node.append(_node("Abs", [name], f"{name}.size"))
        top = f"{name}.maxima"
        graph.node.append(_node("ReduceMax", [f"{name}.size"], top, axes=[0, 1], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(top, onnx.TensorProto.FLOAT, None))
    probe = path.with_name("probe.onnx")  # beside its weights
    found: dict[str, Floats] = {}
    try:
        probe.write_bytes(model.SerializeToString())
        session = onnxruntime.InferenceSession(
            str(probe), options(len(os.sched_getaffinity(0))), providers=["CPUExecutionProvider"]
        )
        for ids in sequences:
            feed = {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])}
            for name, top in zip(names, session.run(None, feed), strict=True):
                found[name] = np.maximum(found.get(name, top), top)
    finally:
        probe.unlink(missing_ok=True)
    return found


def convert(path: Path, maxima: ColumnMaxima) -> onnx.ModelProto:
    """Convert the graph at `path` and the weights beside it; its output stays float32.

    `maxima`: what `column_maxima` has seen in it.
    """
    model = onnx.load(path)
    _Conversion(model.graph, maxima).run()
    if all(opset.domain != _DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    (path.parent / WEIGHTS).unlink()
    weights_file.split(model, path, shared=True)
    return model


def quantize_columns(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """A matrix (i, o) as integers, and the scale (o,) of each column."""
    scales = np.maximum(np.abs(matrix).max(axis=0), _LEAST_TOP) / np.float32(_MOST)
    integers = np.rint(matrix / scales).astype(np.int8)
    return integers, scales.astype(np.float32)


def smoothing_factors(activations: Floats, weights: Floats) -> Floats:
    """What each column (i,) of an activation is divided by; their geometric mean is 1.

    `activations` (i,): the largest size of each column; `weights` (i,): that of the weights it
    meets.
    """
    found = np.maximum(activations, _LEAST_TOP) ** _MIGRATION
    found /= np.maximum(weights, _LEAST_TOP) ** (1 - _MIGRATION)
    smoothed: Floats = (found / np.exp(np.log(found).mean())).astype(np.float32)
    return smoothed


class _Conversion:
    """Of one graph."""

    def __init__(self, graph: onnx.GraphProto, maxima: ColumnMaxima) -> None:
        self._graph = graph
        self._maxima = maxima
        self._made = {output: node.op_type for node in graph.node for output in node.output}
        products = list(_products(graph))
        names = {node.input[1] for node in products}
        self._weights = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.name in names
        }
        self._groups = _groups([(node.input[0], node.input[1]) for node in products])
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[np.generic]] = {}
        self._rows: set[str] = set()  # activations that are quantized
        self._uses: Counter[str] = Counter()  # of weights

    def run(self) -> None:
        """Convert each product; drop the weights that nothing reads any more."""
        for node in self._graph.node:
            if _is_product(node, self._weights):
                self._product(node)
            else:
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        tensors = [numpy_helper.from_array(value, n) for n, value in self._constants.items()]
        read = {name for node in weights_file.nodes(self._graph) for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend([*kept, *tensors])

    def _product(self, node: onnx.NodeProto) -> None:
        x, name = node.input
        lowest = _LOWEST.get(self._made.get(x, ""))
        matrix = self._weights[name]
        if lowest is None:
            matrix = matrix * self._factors(x)[:, None]
        columns, scales = quantize_columns(matrix)
        # A name for each use: where onnxruntime must convert weights for a processor, it fails for
        # those that two products share. The file has them once.
        self._uses[name] += 1
        name = f"{name}.{self._uses[name]}"
        inputs = [
            self._by_row(x, lowest),
            self._constant(f"{name}.int8", columns),
            self._constant("int8.one", np.array(1, np.float32)),
            self._constant(f"{name}.scales", scales),
            self._constant(*_zero(lowest)),
        ]
        output = node.output[0]
        product = self._node("MatMulIntegerToFloat", inputs, f"{output}.steps", domain=_DOMAIN)
        if not lowest:
            self._node("Mul", [product, f"{x}.scale"], output)
            return
        scaled = self._node("Mul", [product, f"{x}.scale"], f"{output}.shifted")
        # The lowest value was added to each component.
        added = np.float32(lowest) * (columns.astype(np.float32) * scales).sum(axis=0)
        self._node("Sub", [scaled, self._constant(f"{name}.added", added)], output)

    def _factors(self, x: str) -> Floats:
        activations, weights = self._groups[x]
        met = np.max([np.abs(self._weights[name]).max(axis=1) for name in weights], axis=0)
        return smoothing_factors(np.max([self._maxima[name] for name in activations], axis=0), met)

    def _by_row(self, x: str, lowest: float | None) -> str:
        """x (..., i) as integers, with one scale a row: `x`.scale (..., 1)."""
        integers = f"{x}.integers"
        if x in self._rows:
            return integers
        self._rows.add(x)
        if lowest is None:
            factor = self._constant(f"{x}.factors", self._factors(x))
            even = self._node("Div", [x, factor], f"{x}.even")
            size, most = self._node("Abs", [even], f"{x}.size"), _MOST
        else:
            by = self._constant(f"int8.lowest_{lowest}", np.array(lowest, np.float32))
            even = self._node("Add", [x, by], f"{x}.even") if lowest else x
            size, most = even, _ALL
        top = self._node("ReduceMax", [size], f"{x}.top", axes=[-1], keepdims=1)
        least = self._constant("int8.least", np.array(_LEAST_TOP, np.float32))
        safe = self._node("Max", [top, least], f"{x}.safe")
        step = self._constant(f"int8.{most}", np.array(most, np.float32))
        scale = self._node("Div", [safe, step], f"{x}.scale")
        steps = self._node("Div", [even, scale], f"{x}.in_steps")
        one = self._constant("int8.one", np.array(1, np.float32))
        return self._node("QuantizeLinear", [steps, one, self._constant(*_zero(lowest))], integers)

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants.setdefault(name, value)
        return name

    def _node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._nodes.append(_node(op, inputs, output, **attributes))
        return output


def _groups(products: Sequence[tuple[str, str]]) -> dict[str, tuple[set[str], set[str]]]:
    """By activation: all activations and weights that it is joined with by products."""
    groups: dict[str, tuple[set[str], set[str]]] = {}
    by_weight: dict[str, tuple[set[str], set[str]]] = {}
    for x, name in products:
        group = groups.get(x, (set(), set()))
        other = by_weight.get(name, group)
        group[0].update((x,), other[0])
        group[1].update((name,), other[1])
        groups |= dict.fromkeys(group[0], group)
        by_weight |= dict.fromkeys(group[1], group)
    return groups


def _node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)


def _zero(lowest: float | None) -> tuple[str, NDArray[np.uint8]]:
    """Name and value of the integer that stands for 0, or for the lowest value."""
    value = _ZERO if lowest is None else 0
    return f"int8.zero_{value}", np.array(value, np.uint8)


def _products(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The products of an activation with a large enough matrix of weights."""
    matrices = {tensor.name for tensor in graph.initializer if _is_matrix(tensor)}
    return (node for node in graph.node if _is_product(node, matrices))


def _is_product(node: onnx.NodeProto, matrices: Mapping[str, Any] | set[str]) -> bool:
    return node.op_type == "MatMul" and node.input[1] in matrices


def _is_matrix(tensor: onnx.TensorProto) -> bool:
    is_float = tensor.data_type == onnx.TensorProto.FLOAT
    return is_float and len(tensor.dims) == 2 and min(tensor.dims) >= _LEAST_SIZE
