"""Products of queries or keys with learned embeddings of distances, as DeBERTa has them."""

from __future__ import annotations

import numpy as np

from embedserve.arrays.types import Ints
from export.families.attention import Heads
from export.families.layers import Layers
from export.families.rotary import tokens


class Distances:
    """The distances of one graph, in `buckets` for either direction (0: a bucket for each).

    `longest`: distances beyond it share the last bucket.
    """

    def __init__(self, layers: Layers, buckets: int, longest: int) -> None:
        self._graph = layers.graph
        self._buckets = buckets
        self._longest = longest
        self.span = buckets or longest

    def product(self, x: str, heads: Heads, rows: str, sign: int) -> str:
        """Multiply x (b, t, width) by the embedding of sign * (row - column): (b, heads, t, t).

        `rows` (2 * span, width): an embedding for each bucket. Each token is first multiplied by
        the distances t - 1 to -t, in this order: (t, 2 * t). Row i of the result begins at column
        t - 1 - i of these products. One reshape aligns all rows: the products as one vector, from
        element t - 1 on, cut into rows of 2 * t - 1.
        """
        graph = self._graph
        length, first, end, shape = self._lengths()
        split = graph.integers(0, 0, heads.count, heads.size)
        x = graph.node("Transpose", [graph.node("Reshape", [x, split])], perm=[0, 2, 1, 3])
        split = graph.integers(-1, heads.count, heads.size)
        rows = graph.node("Transpose", [graph.node("Reshape", [rows, split])], perm=[1, 0, 2])
        met = graph.node("Gather", [rows, self._met(sign)], axis=1)
        x = graph.node("FusedMatMul", [x, met], transB=1)
        x = graph.node("Reshape", [x, graph.integers(0, 0, -1)])
        x = graph.node("Slice", [x, first, end, graph.integers(2)])
        x = graph.node("Reshape", [x, shape])
        return graph.node("Slice", [x, graph.integers(0), length, graph.integers(3)])

    def _met(self, sign: int) -> str:
        """The rows (2 * t,) of the distances from t - 1 to -t, times `sign`."""
        graph, name = self._graph, f"distances_{sign}"
        if not graph.has(name):
            table = self._rows(sign)
            most = len(table) // 2
            start = graph.node("Sub", [tokens(graph), graph.integer(1)])
            stop = graph.node("Sub", [graph.integer(-1), tokens(graph)])
            away = graph.node("Range", [start, stop, graph.integer(-1)])
            away = graph.node("Clip", [away, graph.integer(-most), graph.integer(most)])
            away = graph.node("Add", [away, graph.integer(most)])
            graph.node("Gather", [graph.constant(f"{name}.rows", table), away], name)
        return name

    def _rows(self, sign: int) -> Ints:
        """The row of each distance from -n to n, times `sign`; distances past n have that of n."""
        n = self._longest
        while n and int(self._bucketed(n)[-1]) < self.span:
            n *= 2
        return np.clip(sign * self._bucketed(n) + self.span, 0, 2 * self.span - 1)

    def _bucketed(self, n: int) -> Ints:
        """The bucket of each distance from -n to n, in the reference's precision.

        Small distances have a bucket each; those of longer ones get logarithmically wider.
        """
        import torch

        distances = torch.arange(-n, n + 1)
        if not self._buckets:
            return np.asarray(distances.numpy())
        half = self._buckets // 2
        away = distances.abs().clamp(min=half - 1)
        last = torch.log(torch.tensor((self._longest - 1) / half))
        wide = torch.ceil(torch.log(away / half) / last * (half - 1)) + half
        buckets = torch.where(away <= half, distances.type_as(wide), wide * distances.sign())
        return np.asarray(buckets.long().numpy())

    def _lengths(self) -> tuple[str, str, str, str]:
        """t, t - 1 and t - 1 + t * (2 * t - 1) as vectors of length 1, and (0, 0, t, 2 * t - 1)."""
        graph = self._graph
        names = ("length", "length.first", "length.end", "length.shape")
        if not graph.has(names[0]):
            one = graph.integers(1)
            length = graph.node("Unsqueeze", [tokens(graph), graph.integers(0)], names[0])
            first = graph.node("Sub", [length, one], names[1])
            row = graph.node("Add", [first, length])
            graph.node("Add", [first, graph.node("Mul", [length, row])], names[2])
            graph.node("Concat", [graph.integers(0, 0), length, row], names[3], axis=0)
        return names
