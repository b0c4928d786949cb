"""Learned positions: by place in the batch, or counted from the ids as RoBERTa does."""

from __future__ import annotations

from onnx import TensorProto

from export.families.graph_builder import GraphBuilder
from export.families.rotary import tokens


def by_place(graph: GraphBuilder, table: str) -> str:
    """The first t rows of `table` (n, h): (t, h)."""
    ends = graph.node("Unsqueeze", [tokens(graph), graph.integers(0)])
    return graph.node("Slice", [table, graph.integers(0), ends, graph.integers(0)])


def by_ids(graph: GraphBuilder, table: str, pad: int) -> str:
    """Rows of `table`, (b, t, h). The row is a token's number among those not `pad`, plus `pad`.

    A token `pad` inside a text has position `pad` and is not counted, nor is padding, whatever
    its id.
    """
    is_pad = graph.node("Equal", ["input_ids", graph.integer(pad)])
    zero = graph.integer(0)
    counted = graph.node("Where", [is_pad, zero, "attention_mask"])
    # CPU and CUDA have CumSum of int64, and also of int32, at half the width.
    counted = graph.node("Cast", [counted], to=TensorProto.INT32)
    sums = graph.node("CumSum", [counted, graph.integer(1)])
    numbers = graph.node("Cast", [graph.node("Mul", [sums, counted])], to=TensorProto.INT64)
    return graph.node("Gather", [table, graph.node("Add", [numbers, graph.integer(pad)])])
