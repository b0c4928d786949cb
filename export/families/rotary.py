"""Rotary position embedding: frequencies as transformers computes them, angles in the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from embedserve.arrays.types import Floats
from export.families.graph_builder import GraphBuilder
from export.files import refuse_unknown, refused

# Types whose frequencies do not depend on how long the padded batch is: a text's vector must not.
_TYPES = ("default", "linear", "llama3", "yarn")

# What transformers reads for these types; "type" is rope_type's name in older files.
_PARAMETERS = (
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
)


def frequencies(
    config: Any,
    parameters: dict[str, Any],
    head_size: int,
    where: str,
    layer_type: str | None = None,
) -> tuple[Floats, float]:
    """Return the frequencies (head_size / 2,) float32 and the factor of cosines and sines.

    `parameters` is rope_parameters, or its part for `layer_type`, if `config`, transformers' own
    configuration, has one for each type. In the reference's order of operations: a unit in the
    last place is 1e-4 rad at position 3,000.
    """
    import torch

    kind = parameters.get("rope_type", "default")
    if kind not in _TYPES:
        raise refused(f"{where}: rope_type = {kind!r}; accepted: {', '.join(_TYPES)}")
    refuse_unknown(parameters, _PARAMETERS, where)
    if (part := parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise refused(f"{where}: partial_rotary_factor = {part!r}; accepted: 1.0")
    if kind == "default":
        exponents = torch.arange(0, head_size, 2, dtype=torch.float) / head_size
        return np.asarray((1.0 / (parameters["rope_theta"] ** exponents)).numpy()), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", layer_type=layer_type)
    return np.asarray(values.numpy()), float(factor)


class Rotary:
    """Cosines and sines (t, head_size / 2) of one set of frequencies, computed once per pass."""

    def __init__(self, graph: GraphBuilder, name: str, values: Floats, factor: float = 1.0) -> None:
        self._graph = graph
        frequencies = graph.constant(f"{name}.frequencies", values[None, :])
        angles = graph.node("Mul", [positions(graph), frequencies], f"{name}.angles")
        self._cos, self._sin = graph.node("Cos", [angles]), graph.node("Sin", [angles])
        if factor != 1.0:
            scale = graph.number(factor)
            self._cos = graph.node("Mul", [self._cos, scale])
            self._sin = graph.node("Mul", [self._sin, scale])

    def rotate(self, x: str) -> str:
        """x (b, t, heads * head_size), each head's halves rotated by position."""
        start = self._graph.integers(0)
        return self._graph.node("RotaryEmbedding", [x, start, self._cos, self._sin])


def positions(graph: GraphBuilder) -> str:
    """0 to t - 1 as a column (t, 1) float32; added once per graph."""
    if not graph.has("position_column"):
        zero, one = graph.integer(0), graph.integer(1)
        numbers = graph.node("Range", [zero, tokens(graph), one])
        numbers = graph.node("Cast", [numbers], to=TensorProto.FLOAT)
        graph.node("Unsqueeze", [numbers, graph.integers(1)], "position_column")
    return "position_column"


def tokens(graph: GraphBuilder) -> str:
    """The length t of the padded batch, an int64 scalar; added once per graph."""
    if not graph.has("tokens"):
        shape = graph.node("Shape", [graph.ids])
        graph.node("Gather", [shape, graph.integer(1)], "tokens")
    return "tokens"
