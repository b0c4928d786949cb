"""A learned bias of attention by distance: the buckets of T5 and MPNet, looked up in the graph."""

from __future__ import annotations

import math

from embedserve.arrays.types import Floats, Ints
from export.families.graph_builder import GraphBuilder
from export.families.rotary import tokens


def bias(graph: GraphBuilder, name: str, table: Floats, longest: int) -> str:
    """The bias (1, heads, t, t) of a pass.

    `table` (buckets, heads); distances of `longest` or more share one bucket per direction.
    """
    by_distance = table[_buckets(len(table), longest)].T[None]
    rows = graph.constant(f"{name}.by_distance", by_distance)
    return graph.node("Gather", [rows, _distances(graph, longest)], name, axis=2)


def _buckets(count: int, longest: int) -> Ints:
    """The buckets of the distances key - query from -longest to longest, (2 * longest + 1,).

    Half of them for either direction: one each for small distances, then logarithmically wider
    ones. In the reference's precision: one unit in the last place may give another bucket.
    https://arxiv.org/abs/1910.10683
    """
    import torch

    distances = torch.arange(-longest, longest + 1)
    half = count // 2
    exact = half // 2
    after = (distances > 0).long() * half
    away = distances.abs()
    ratio = torch.log(away.float() / exact) / math.log(longest / exact) * (half - exact)
    wide = (exact + ratio.clamp(min=0).long()).clamp(max=half - 1)
    buckets: Ints = (after + torch.where(away < exact, away, wide)).numpy()
    return buckets


def _distances(graph: GraphBuilder, longest: int) -> str:
    """key - query of each pair of tokens, cut at `longest`, counted from -longest: (t, t)."""
    name = f"distances_{longest}"
    if not graph.has(name):
        places = graph.node("Range", [graph.integer(0), tokens(graph), graph.integer(1)])
        queries = graph.node("Unsqueeze", [places, graph.integers(1)])
        away = graph.node("Sub", [places, queries])
        away = graph.node("Clip", [away, graph.integer(-longest), graph.integer(longest)])
        graph.node("Add", [away, graph.integer(longest)], name)
    return name
