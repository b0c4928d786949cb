"""Attention's operators against softmax(q k^T) v in numpy: who sees whom, and the same bits.

Ids choose rows of random tables as queries, keys and values, so that the graph under test is the
one that families get, and nothing but attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedserve.arrays.types import Floats, Ints
from embedserve.artifact import GRAPH, WEIGHTS
from embedserve.errors import StartupError
from export.families import even_length
from export.families.attention import LARGEST_REACH, LONGEST_MASKED, Attention, Heads
from export.families.graph_builder import GraphBuilder

ROWS = 400
HEADS = Heads(count=2, size=8, shared=1)
TOLERANCE = 4e-6  # of heads of 256 components; others stay below 1e-6
LONGEST = 1200

Bools = NDArray[np.bool_]


class Mixer:
    """A graph of nothing but one kind of attention, and the same in numpy."""

    def __init__(
        self,
        kind: str,
        window: int = 0,
        heads: Heads = HEADS,
        softcap: float = 0.0,
        scale: float | None = None,
    ) -> None:
        self.kind = kind
        self.window = window
        self.heads = heads
        self.softcap = softcap
        self.scale = scale or heads.size**-0.5
        draw = np.random.default_rng(0)
        widths = {"query": heads.width, "key": heads.shared_width, "value": heads.shared_width}
        self.tables = {
            name: draw.standard_normal((ROWS, width)).astype(np.float32)
            for name, width in widths.items()
        }
        draw = np.random.default_rng(1)
        self.bias = draw.standard_normal((1, heads.count, 64, 64)).astype(np.float32)
        with TemporaryDirectory() as directory:
            self.masked_up_to = self._write(Path(directory))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(
                Path(directory) / GRAPH, options, providers=["CPUExecutionProvider"]
            )

    def _write(self, directory: Path) -> int | None:
        with (directory / WEIGHTS).open("wb") as weights:
            graph = GraphBuilder(weights)
            if self.kind == "causal":
                even_length.pad(graph)
            query, key, value = (
                graph.node("Gather", [graph.constant(name, table), graph.ids])
                for name, table in self.tables.items()
            )
            attention = Attention(graph, self.heads, self.scale)
            if self.kind == "causal":
                mixed = attention.causal(query, key, value, self.window or -1, self.softcap)
                output = even_length.trim(graph, mixed)
            elif self.kind == "windowed":
                output = attention.windowed(query, key, value, self.window)
            elif self.kind == "bias":
                output = attention.bidirectional(query, key, value, self._cut_bias(graph))
            else:
                output = attention.bidirectional(query, key, value)
        graph.write(output, self.heads.width, directory / GRAPH)
        return attention.masked_up_to

    def _cut_bias(self, graph: GraphBuilder) -> str:
        bias = graph.constant("bias", self.bias)
        shape = graph.node("Shape", ["input_ids"])
        t = graph.node("Gather", [shape, graph.integers(1)])
        ends = graph.node("Concat", [t, t], axis=0)
        return graph.node("Slice", [bias, graph.integers(0, 0), ends, graph.integers(2, 3)])

    def run(self, *texts: Ints) -> list[Floats]:
        """Each text's mixed values (t, width), all of them in one pass, padded to the right."""
        shape = len(texts), max(map(len, texts))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        [mixed] = self.session.run(None, {"input_ids": ids, "attention_mask": mask})
        return [mixed[row, : len(text)] for row, text in enumerate(texts)]

    def expected(self, text: Ints) -> NDArray[np.float64]:
        """The same of one text in float64, written down as the formula."""
        t, heads = len(text), self.heads
        query, key, value = (
            table[text].astype(np.float64).reshape(t, -1, heads.size)
            for table in self.tables.values()
        )
        repeats = heads.count // heads.shared
        key, value = np.repeat(key, repeats, axis=1), np.repeat(value, repeats, axis=1)
        seen = self.seen(t)
        mixed = np.empty((t, heads.count, heads.size))
        for head in range(heads.count):
            scores = query[:, head] @ key[:, head].T * self.scale
            if self.softcap:
                scores = self.softcap * np.tanh(scores / self.softcap)
            if self.kind == "bias":
                scores = scores + self.bias[0, head, :t, :t]
            weights = np.exp(np.where(seen, scores, -np.inf) - scores.max())
            mixed[:, head] = weights @ value[:, head] / weights.sum(axis=1, keepdims=True)
        return mixed.reshape(t, heads.width)

    def seen(self, t: int) -> Bools:
        """(query, key): whether the one sees the other."""
        behind: Ints = np.arange(t)[:, None] - np.arange(t)[None, :]
        if self.kind == "windowed":
            near: Bools = np.abs(behind) <= self.window
            return near
        if self.kind == "causal":
            before: Bools = (behind >= 0) & (behind < (self.window or t))
            return before
        return np.ones((t, t), np.bool_)


@cache
def mixer(kind: str, window: int = 0) -> Mixer:
    return Mixer(kind, window)


def texts_of(lengths: Sequence[int]) -> list[Ints]:
    draw = np.random.default_rng(sum(lengths))
    return [draw.integers(0, ROWS, t, np.int64) for t in lengths]


def check(mixer: Mixer, lengths: Sequence[int]) -> None:
    """Each text of one pass is what numpy gives, and has the bits that it has alone."""
    texts = texts_of(lengths)
    for text, beside in zip(texts, mixer.run(*texts), strict=True):
        np.testing.assert_allclose(beside, mixer.expected(text), rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(mixer.run(text)[0], beside)


def near(*places: int) -> st.SearchStrategy[int]:
    """Lengths at, just below and just above places where another path or block begins."""
    around = {place + step for place in places for step in (-1, 0, 1)}
    return st.sampled_from(sorted(t for t in around if 1 <= t <= LONGEST))


def padded(window: int) -> st.SearchStrategy[list[int]]:
    """Lengths of a pass with padding, the longest at most LONGEST_MASKED."""
    edges = near(1, window, 2 * window, 4 * window, LONGEST_MASKED)
    length = (st.integers(1, 100) | edges).filter(lambda t: t <= LONGEST_MASKED)
    return st.lists(length, min_size=1, max_size=4)


def unpadded(window: int) -> st.SearchStrategy[list[int]]:
    """Lengths of a pass of long texts, all equal."""
    size = 2 * window
    blocks = [size * n for n in range(1, LONGEST // size + 1)]
    long = [block for block in blocks if block > LONGEST_MASKED]
    edges = near(LONGEST_MASKED + 1, *long[:2], *long[-2:])
    length = edges.filter(lambda t: t > LONGEST_MASKED) | st.integers(LONGEST_MASKED + 1, LONGEST)
    return st.builds(lambda t, rows: [t] * rows, length, st.integers(1, 2))


def passes(longest_window: int) -> st.SearchStrategy[tuple[int, list[int]]]:
    """A window and the lengths of a pass."""
    return st.integers(1, longest_window).flatmap(
        lambda window: st.tuples(st.just(window), padded(window) | unpadded(window))
    )


@settings(max_examples=60, deadline=None)
@given(passes(70))
@example((1, [1]))
@example((70, [1, 512, 3]))
@example((64, [513]))
@example((64, [1024, 1024]))
@example((64, [1025]))
def test_windowed(case: tuple[int, list[int]]) -> None:
    """Each token sees those at a distance of at most the window, in blocks or not."""
    window, lengths = case
    check(mixer("windowed", window), lengths)


@pytest.mark.parametrize("lengths", [[512, 30], [513], [1024], [1025], [1152], [1200, 1200]])
@pytest.mark.parametrize("window", [127, 129, 256, 257, 512, LARGEST_REACH])
def test_wide_windows(window: int, lengths: list[int]) -> None:
    """Past 512 tokens as long as four windows the whole, in blocks from there; EmbeddingGemma's."""
    check(mixer("windowed", window), lengths)


@settings(max_examples=60, deadline=None)
@given(passes(70), st.booleans())
@example((1, [1]), True)
@example((1, [1, 700, 513]), True)
@example((70, [512, 513, 1200]), False)
def test_causal(case: tuple[int, list[int]], with_window: bool) -> None:
    """Each token sees itself and those before it, or window - 1 of them."""
    window, lengths = case
    check(mixer("causal", window if with_window else 0), lengths)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, LONGEST) | near(*range(16, 513, 16)), min_size=2, max_size=3))
@example([17, 18])
@example([513, 1200])
def test_causal_padded_to_any_length(lengths: list[int]) -> None:
    """A causal text's bits do not depend on padding, however long.

    GroupQueryAttention takes 16 queries at once for heads of 8, and a single one otherwise.
    """
    check(mixer("causal"), lengths)
    check(mixer("causal", 33), lengths)


@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_causal_blocks_of_large_heads(size: int) -> None:
    """The same at the sizes that models have, whose blocks are of 64 to 170 queries."""
    large = Mixer("causal", 0, Heads(1, size, 1))
    for length in (65, 129, 171, 193, 257, 385, 511, 513):
        check(large, [length, length + 1])
        check(large, [length, 700])


@settings(max_examples=30, deadline=None)
@given(padded(64) | unpadded(64))
@example([1])
@example([513])
@example([512, 1])
def test_bidirectional(lengths: list[int]) -> None:
    """Each token sees all of its text, on the path with a mask and on the one without."""
    check(mixer("bidirectional"), lengths)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=4))
def test_bias(lengths: list[int]) -> None:
    """A bias (1, heads, t, t) is added to the scores, and what is padding stays unseen."""
    check(mixer("bias"), lengths)


@pytest.mark.parametrize("kind", ["bidirectional", "windowed"])
def test_padding_past_the_mask_limit(kind: str) -> None:
    """A pass that nobody should ask for, long and padded, is right all the same, if not in bits."""
    mixers = mixer(kind, 20 if kind == "windowed" else 0)
    assert mixers.masked_up_to == LONGEST_MASKED
    texts = texts_of([700, 40, 600])
    for text, beside in zip(texts, mixers.run(*texts), strict=True):
        np.testing.assert_allclose(beside, mixers.expected(text), rtol=0, atol=TOLERANCE)


def test_causal_has_one_path() -> None:
    assert mixer("causal").masked_up_to is None


@pytest.mark.parametrize("kind", ["causal", "bidirectional", "windowed"])
def test_a_row_without_tokens_leaves_others_alone(kind: str) -> None:
    """It gets finite numbers, and the row beside it its own bits."""
    mixers = mixer(kind, 5 if kind == "windowed" else 0)
    [text] = texts_of([9])
    ids = np.stack([text, text])
    mask = np.array([[1] * 9, [0] * 9])
    [mixed] = mixers.session.run(None, {"input_ids": ids, "attention_mask": mask})
    assert np.isfinite(mixed).all()
    np.testing.assert_array_equal(mixed[0], mixers.run(text)[0])


@pytest.mark.parametrize("softcap", [0.5, 30.0])
@pytest.mark.parametrize("window", [0, 7])
def test_softcap(softcap: float, window: int) -> None:
    """Scores far above the bound are held there: a scale of 3 makes them large."""
    check(Mixer("causal", window, softcap=softcap, scale=3.0), [40, 3, 17])


HEADS_OF_MODELS: dict[str, tuple[int, int, int]] = {
    "qwen3-0.6b": (16, 128, 8),
    "qwen2-0.5b": (14, 64, 2),
    "embeddinggemma": (3, 256, 1),
    "gemma2-9b": (16, 256, 8),
    "llama-1b": (32, 64, 8),
    "modernbert-base": (12, 64, 12),
    "one": (1, 8, 1),
    "odd": (9, 40, 3),
    "no power of two": (6, 72, 2),
}


@pytest.mark.parametrize("kind", ["causal", "bidirectional", "windowed"])
@pytest.mark.parametrize("shape", HEADS_OF_MODELS.values(), ids=HEADS_OF_MODELS)
def test_heads(kind: str, shape: tuple[int, int, int]) -> None:
    """Heads as models have them: each shared one is for the query heads beside each other."""
    count, size, shared = shape
    check(Mixer(kind, 5, Heads(count, size, shared)), [30, 1, 12])


def built(heads: Heads, mix: Callable[[Attention], Any]) -> None:
    mix(Attention(GraphBuilder(None), heads, 1.0))


@pytest.mark.parametrize("size", [2, 4, 12, 20, 100])
def test_causal_refuses_heads(size: int) -> None:
    with pytest.raises(StartupError, match=f"heads of {size} components; .* a multiple of 8"):
        built(Heads(2, size, 1), lambda attention: attention.causal("q", "k", "v"))


@pytest.mark.parametrize("reach", [0, LARGEST_REACH + 1])
def test_windowed_refuses_reach(reach: int) -> None:
    with pytest.raises(StartupError, match=f"see {reach} to either side; accepted: 1 to 1024"):
        built(HEADS, lambda attention: attention.windowed("q", "k", "v", reach))
