"""Attention in onnxruntime's fused operators: causal, bidirectional, in windows, with a bias.

A text's vector must not depend on its neighbours in the pass, not even in one bit, and a long text
must not need a (t, t) matrix:

- Causal: GroupQueryAttention, which takes each row's length and never holds such a matrix. It needs
  heads of a multiple of HEAD_STEP components and, for equal bits, an even number of tokens
  (even_length). onnxruntime's CPU provider has it in float32, its CUDA provider only in float16.
- Bidirectional: MultiHeadAttention. A pass of more than LONGEST_MASKED tokens without any padding
  takes its flash path, which has no mask; every other pass takes the masked path. For equal bits,
  longer texts must run in passes without padding (Manifest.masked_up_to).
- Bidirectional in a window: longer texts run in blocks as long as the window. Each block sees
  itself and half a window to either side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from export.families.graph_builder import Branch, GraphBuilder
from export.families.rotary import tokens
from export.files import refused

# Below this many tokens both paths take the same time and little memory; above it the masked path's
# (t, t) matrix grows: at 8,192 tokens and 12 heads it is 3.2 GB.
LONGEST_MASKED = 512

# GroupQueryAttention's own limit.
HEAD_STEP = 8

# A block's scores are a matrix (2 * reach, 4 * reach): at this reach, of 8 million numbers.
LARGEST_REACH = 1024

# Added to masked scores: their weight is exactly 0, and a row that sees nothing stays finite.
_UNSEEN = -1e30


@dataclass(frozen=True, slots=True)
class Heads:
    """`count` query heads of `size` components, over `shared` heads of keys and values."""

    count: int
    size: int
    shared: int

    @property
    def width(self) -> int:
        return self.count * self.size

    @property
    def shared_width(self) -> int:
        return self.shared * self.size


class Attention:
    """All layers' attention of one graph; masks and lengths are computed once per pass.

    `masked_up_to` is the manifest's; it is set once a layer has two paths.
    """

    def __init__(self, graph: GraphBuilder, heads: Heads, scale: float) -> None:
        self._graph = graph
        self._heads = heads
        self.scale = scale
        self.masked_up_to: int | None = None

    def causal(
        self, query: str, key: str, value: str, window: int = -1, softcap: float = 0.0
    ) -> str:
        """query (b, t, width), key and value (b, t, shared_width) -> (b, t, width).

        `window`: each token sees itself and window - 1 before it. -1: all before it.
        `softcap` c: scores s become c * tanh(s / c), and the operator holds all of them,
        (heads, t, t). 0: scores stay as they are.
        StartupError if the operator cannot do heads of this size.
        """
        if self._heads.size % HEAD_STEP:
            raise refused(
                f"config.json: heads of {self._heads.size} components; accepted for causal "
                f"attention: a multiple of {HEAD_STEP}"
            )
        last, total = self._lengths()
        name = self._graph.fresh("causal")
        return self._graph.nodes(
            "GroupQueryAttention",
            [query, key, value, "", "", last, total],
            [name, f"{name}.keys", f"{name}.values"],
            num_heads=self._heads.count,
            kv_num_heads=self._heads.shared,
            scale=self.scale,
            local_window_size=window,
            softcap=softcap,
        )[0]

    def bidirectional(
        self, query: str, key: str, value: str, bias: str = "", added: str = ""
    ) -> str:
        """Like `causal`, but each token sees all. `bias` (1 or b, heads, t, t) is added to scores.

        `added` (3 * width,) is added to query, key and value, which must then all be as wide.
        """
        if not added:
            key, value = self._expanded(key), self._expanded(value)
        inputs = [query, key, value, added]
        if bias:
            inputs += [self.mask(), bias]
            return self._graph.node("MultiHeadAttention", inputs, **self._attributes())
        self.masked_up_to = LONGEST_MASKED
        unmasked, masked = Branch(), Branch()
        unmasked.node("MultiHeadAttention", inputs, "mixed", **self._attributes())
        masked.node("MultiHeadAttention", [*inputs, self.mask()], "mixed", **self._attributes())
        return self._graph.branch(self._is_long_and_full(), unmasked, masked)

    def windowed(self, query: str, key: str, value: str, reach: int) -> str:
        """Like `bidirectional`, but each token sees only those at most `reach` away.

        StartupError if the reach is not from 1 to LARGEST_REACH.
        """
        if not 1 <= reach <= LARGEST_REACH:
            raise refused(
                f"config.json: sliding_window: tokens see {reach} to either side; accepted: 1 to "
                f"{LARGEST_REACH}"
            )
        self.masked_up_to = LONGEST_MASKED
        key, value = self._expanded(key), self._expanded(value)
        self._rows()
        bias = self._window_bias(reach)
        blocks, whole = Branch(), Branch()
        self._in_blocks(blocks, query, key, value, reach)
        inputs = [query, key, value, "", "", bias]
        whole.node("MultiHeadAttention", inputs, "mixed", **self._attributes())
        return self._graph.branch(self._in_blocks_from(reach), blocks, whole)

    # -- once a pass ---------------------------------------------------------------------------

    def mask(self) -> str:
        """The mask (b, t) as int32."""
        if not self._graph.has("mask"):
            self._graph.node("Cast", [self._graph.mask], "mask", to=TensorProto.INT32)
        return "mask"

    def _lengths(self) -> tuple[str, str]:
        """Each row's last position (b,) and the padded length, int32."""
        graph = self._graph
        if not graph.has("last_positions"):
            one = graph.constant("int32[1]", np.array([1], np.int32))
            zero = graph.constant("int32[0]", np.array([0], np.int32))
            lengths = graph.node("ReduceSum", [self.mask(), graph.integers(1)], keepdims=0)
            last = graph.node("Sub", [lengths, one])
            graph.node("Max", [last, zero], "last_positions")  # else a row without tokens fails
            graph.node("Cast", [tokens(graph)], "padded_length", to=TensorProto.INT32)
        return "last_positions", "padded_length"

    def _longer_than(self, limit: int) -> str:
        graph, name = self._graph, f"longer_than_{limit}"
        if not graph.has(name):
            graph.node("Greater", [tokens(graph), graph.integer(limit)], name)
        return name

    def _in_blocks_from(self, reach: int) -> str:
        """Whether the pass runs in blocks. Up to two blocks, the whole has no more scores."""
        return self._longer_than(max(LONGEST_MASKED, 4 * reach))

    def _is_long_and_full(self) -> str:
        graph = self._graph
        if not graph.has("is_long_and_full"):
            least = graph.node("ReduceMin", [self.mask()], keepdims=0)
            full = graph.node("Cast", [least], to=TensorProto.BOOL)
            graph.node("And", [self._longer_than(LONGEST_MASKED), full], "is_long_and_full")
        return "is_long_and_full"

    def _window_bias(self, reach: int) -> str:
        """The bias that masks tokens, in the shape of the path that is taken: see the two below."""
        graph, name = self._graph, f"window_bias_{reach}"
        if not graph.has(name):
            self._block_lengths(reach)
            blocks, whole = Branch(), Branch()
            self._block_bias(blocks, reach)
            self._whole_bias(whole, reach)
            graph.branch(self._in_blocks_from(reach), blocks, whole, name)
        return name

    def _whole_bias(self, branch: Branch, reach: int) -> None:
        """(b, 1, t, t): masks tokens that are too far away, and padding."""
        graph = self._graph
        bounds = [graph.integer(0), tokens(graph), graph.integer(1)]
        branch.node("Range", bounds, "row")
        branch.node("Unsqueeze", ["row", graph.integers(1)], "column")
        branch.node("Sub", ["column", "row"], "difference")
        branch.node("Abs", ["difference"], "distance")
        branch.node("LessOrEqual", ["distance", graph.integer(reach)], "near")
        branch.node("Unsqueeze", [graph.mask, graph.integers(1, 2)], "keys")
        branch.node("Cast", ["keys"], "real", to=TensorProto.BOOL)
        branch.node("And", ["near", "real"], "seen")
        branch.node("Where", ["seen", graph.number(0.0), graph.number(_UNSEEN)], "bias")

    def _block_bias(self, branch: Branch, reach: int) -> None:
        """(b * blocks, 1, size, 2 * size): masks tokens that are too far away, and padding."""
        graph, size = self._graph, 2 * reach
        _, padding = self._block_lengths(reach)
        branch.node("Add", [padding, graph.integers(reach)], "back")
        branch.node("Concat", [graph.integers(0, reach, 0), "back"], "widths", axis=0)
        branch.node("Pad", [graph.mask, "widths"], "padded")
        self._halves(branch, "padded", "keys", size, graph.integers(-1, size))
        branch.node("Cast", ["keys"], "present", to=TensorProto.BOOL)
        branch.node("Unsqueeze", ["present", graph.integers(1, 2)], "real")
        queries, keys = np.arange(size)[:, None], np.arange(2 * size)[None, :] - reach
        near = graph.constant(f"near_{reach}", np.abs(queries - keys) <= reach)
        branch.node("And", [near, "real"], "seen")
        branch.node("Where", ["seen", graph.number(0.0), graph.number(_UNSEEN)], "bias")

    # -- parts ---------------------------------------------------------------------------------

    def _attributes(self) -> dict[str, Any]:
        return {
            "num_heads": self._heads.count,
            "scale": self.scale,
            "mask_filter_value": _UNSEEN,
        }

    def _expanded(self, x: str) -> str:
        """Repeat each shared head for its query heads: (b, t, shared_width) -> (b, t, width)."""
        heads, graph = self._heads, self._graph
        if heads.shared == heads.count:
            return x
        repeats = heads.count // heads.shared
        x = graph.node("Reshape", [x, graph.integers(0, 0, heads.shared, 1, heads.size)])
        x = graph.node("Expand", [x, graph.integers(1, 1, 1, repeats, 1)])
        return graph.node("Reshape", [x, graph.integers(0, 0, heads.width)])

    def _in_blocks(self, branch: Branch, query: str, key: str, value: str, reach: int) -> None:
        """Blocks of 2 * reach queries, each with the 4 * reach keys around it, as a batch.

        The keys are padded by `reach` in front: block i sees those from 2 * reach * i on.
        """
        graph, size, width = self._graph, 2 * reach, self._heads.width
        length, padding = self._block_lengths(reach)
        split, zero = graph.integers(-1, size, width), graph.integers(0)
        to_queries = [graph.integers(0, 0, 0, 0), padding, zero]
        branch.node("Concat", to_queries, "query_widths", axis=0)
        branch.node("Pad", [query, "query_widths"], "padded_query")
        branch.node("Reshape", ["padded_query", split], "query")
        branch.node("Add", [padding, graph.integers(reach)], "back")
        to_keys = [graph.integers(0, reach, 0, 0), "back", zero]
        branch.node("Concat", to_keys, "key_widths", axis=0)
        for name, x in (("key", key), ("value", value)):
            branch.node("Pad", [x, "key_widths"], f"padded_{name}")
            self._halves(branch, f"padded_{name}", name, size, split)
        inputs = ["query", "key", "value", "", "", self._window_bias(reach)]
        branch.node("MultiHeadAttention", inputs, "blocks", **self._attributes())
        branch.node("Concat", [self._rows(), length, graph.integers(width)], "shape", axis=0)
        branch.node("Reshape", ["blocks", "shape"], "padded_mixed")
        branch.node("Unsqueeze", [tokens(graph), zero], "ends")
        branch.node("Slice", ["padded_mixed", zero, "ends", graph.integers(1)], "mixed")

    def _halves(self, branch: Branch, x: str, output: str, size: int, split: str) -> None:
        """Block i of `output` is the part of `x` from `size` * i on, 2 * `size` long.

        x: (b, length + size, ...), cut into blocks of `size` as `split` says.
        """
        graph = self._graph
        branch.node("Shape", [x], f"{output}_shape")
        branch.node("Gather", [f"{output}_shape", graph.integers(1)], f"{output}_end")
        branch.node("Sub", [f"{output}_end", graph.integers(size)], f"{output}_middle")
        bounds = ((0, f"{output}_middle"), (size, f"{output}_end"))
        for start, end in bounds:
            part = f"{output}_{start}"
            inputs = [x, graph.integers(start), end, graph.integers(1)]
            branch.node("Slice", inputs, part)
            branch.node("Reshape", [part, split], f"{part}_blocks")
        parts = [f"{output}_{start}_blocks" for start, _ in bounds]
        branch.node("Concat", parts, output, axis=1)

    def _rows(self) -> str:
        """The number of rows b, an int64 vector of length 1."""
        graph = self._graph
        if not graph.has("rows"):
            shape = graph.node("Shape", [graph.ids])
            graph.node("Gather", [shape, graph.integers(0)], "rows")
        return "rows"

    def _block_lengths(self, reach: int) -> tuple[str, str]:
        """t rounded up to whole blocks, and how much that adds; int64 vectors of length 1."""
        graph, size = self._graph, 2 * reach
        name = f"block_length_{reach}"
        if not graph.has(name):
            t = graph.node("Unsqueeze", [tokens(graph), graph.integers(0)])
            rounded = graph.node("Add", [t, graph.integers(size - 1)])
            count = graph.node("Div", [rounded, graph.integers(size)])
            graph.node("Mul", [count, graph.integers(size)], name)
            graph.node("Sub", [name, t], f"{name}.padding")
        return name, f"{name}.padding"
