"""Makes the number of tokens in a pass even: causal attention's bits depend on it.

GroupQueryAttention takes queries in blocks, of 64 or 128 at the usual sizes. If the last block has
a single query, its product with the keys is a vector's, which adds up in another order: 129 tokens
alone had other bits in their last row than in a padded pass. Block sizes are even for heads of 64,
128 and 256 components and caches of whole 64 KiB, so one more column avoids this.
"""

from __future__ import annotations

from export.families.graph_builder import GraphBuilder


def pad(graph: GraphBuilder) -> None:
    """Append a column of padding to ids and mask if t is odd; later parts read the padded ones.

    Call it before anything else of the graph is built.
    """
    zero, one, two = graph.integers(0), graph.integers(1), graph.integers(2)
    shape = graph.node("Shape", ["input_ids"])
    graph.node("Gather", [shape, one], "given_tokens")
    odd = graph.node("Mod", ["given_tokens", two])
    widths = graph.node("Concat", [zero, zero, zero, odd], axis=0)
    graph.ids = graph.node("Pad", [graph.ids, widths], "even_ids")
    graph.mask = graph.node("Pad", [graph.mask, widths], "even_mask")


def trim(graph: GraphBuilder, x: str) -> str:
    """x (b, even t, h) -> (b, t, h)."""
    start, axis = graph.integers(0), graph.integers(1)
    return graph.node("Slice", [x, start, "given_tokens", axis])
