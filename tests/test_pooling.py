"""Pooling: every mode by hand, and the law that padding and neighbours change no bit."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from embedserve.arrays import finishing, pooling
from embedserve.arrays.pooling import POOLING, pool
from embedserve.arrays.types import Floats, Ints
from export import pooling_graph

# Four real tokens (t, h). By hand, per component: sums 10 and 17; weighted sums
# 1*1 + 2*4 + 3*4 + 4*1 = 25 and 1*8 + 2*2 + 3*5 + 4*2 = 35, over 1 + 2 + 3 + 4 = 10.
REAL = np.array([[1, 8], [4, 2], [4, 5], [1, 2]], np.float32)
BY_HAND = {
    "cls": [1.0, 8.0],
    "max": [4.0, 8.0],
    "mean": [2.5, 4.25],
    "mean_sqrt_len_tokens": [5.0, 8.5],
    "weightedmean": [2.5, 3.5],
    "lasttoken": [1.0, 2.0],
    "bag": [2.5, 4.25],
}
SIDES = ("right", "left")


class Padded(NamedTuple):
    """A batch as a graph gives it: hidden states (b, t, h) and mask (b, t)."""

    hidden: Floats
    mask: Ints


def padded(rows: list[Floats], t: int, side: str, filler: float = 99.0) -> Padded:
    """Bring rows (t_i, h) to t tokens; padding's hidden states are `filler`, not zero."""
    hidden = np.full((len(rows), t, rows[0].shape[1]), filler, np.float32)
    mask = np.zeros((len(rows), t), np.int64)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(t - len(row), t)
        hidden[i, place], mask[i, place] = row, 1
    return Padded(hidden, mask)


@pytest.mark.parametrize("module", [pooling, finishing], ids=["pooling", "finishing"])
def test_examples_in_docstrings_hold(module: object) -> None:
    """Each example in a docstring gives what stands below it."""
    found = doctest.DocTestFinder().find(module, module.__name__)  # type: ignore[attr-defined]  # a module has a name
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in found:
        runner.run(test)
    assert runner.failures == 0
    assert runner.tries > 0


@pytest.mark.parametrize("modes", [*((mode,) for mode in BY_HAND), tuple(BY_HAND)], ids="+".join)
@pytest.mark.parametrize("side", SIDES)
def test_the_graph_of_a_device_pools_as_numpy_does(
    modes: tuple[str, ...], side: str, tmp_path: Path
) -> None:
    """Rows by hand, padded on either side, beside a longer one."""
    hidden, mask = padded([REAL, np.zeros((6, 2), np.float32)], 6, side)
    pooling_graph.export(modes, 2, tmp_path / "pooling.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "pooling.onnx"))
    rows = session.run(None, {"token_embeddings": hidden, "attention_mask": mask})[0]
    by_hand = [value for mode in modes for value in BY_HAND[mode]]
    np.testing.assert_allclose(rows[0], by_hand, rtol=1e-6)
    np.testing.assert_allclose(rows[1], 0.0)


def test_every_mode_has_a_row_by_hand() -> None:
    """A mode without a hand-computed row is not tested."""
    assert set(POOLING) == set(BY_HAND)


@pytest.mark.parametrize("filler", [99.0, -99.0], ids=["large", "small"])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", BY_HAND)
def test_mode_by_hand(mode: str, side: str, padding: int, filler: float) -> None:
    """A mode sees the real tokens and nothing of the padding, on either side."""
    batch = padded([REAL], 4 + padding, side, filler)
    rows = POOLING[mode](*batch)
    assert rows.dtype == np.float32
    assert rows.tolist() == [BY_HAND[mode]]


@pytest.mark.parametrize("side", SIDES)
def test_max_of_negative_values_is_negative(side: str) -> None:
    """Padding does not count as zero where all real values are below it."""
    batch = padded([np.array([[-3, -1], [-2, -5]], np.float32)], 5, side, 0.0)
    assert POOLING["max"](*batch).tolist() == [[-2.0, -1.0]]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", BY_HAND)
def test_one_token_is_itself_in_every_mode(mode: str, side: str) -> None:
    """Of one real token every mode makes that token."""
    batch = padded([np.array([[3.0, -7.0]], np.float32)], 4, side)
    assert POOLING[mode](*batch).tolist() == [[3.0, -7.0]]


def test_modes_are_concatenated_in_the_given_order() -> None:
    """Several modes give their rows side by side, in the order asked for."""
    batch = padded([REAL, REAL[:1]], 6, "right")
    rows = pool(["lasttoken", "mean", "cls"], *batch)
    assert rows.dtype == np.float32
    assert rows.tolist() == [
        [1.0, 2.0, 2.5, 4.25, 1.0, 8.0],
        [1.0, 8.0, 1.0, 8.0, 1.0, 8.0],
    ]


@pytest.mark.parametrize("mode", ["mean", "mean_sqrt_len_tokens", "weightedmean", "bag"])
def test_a_row_without_real_tokens_gives_zeros(mode: str) -> None:
    """No token, no direction: zeros, never NaN."""
    hidden = np.ones((1, 3, 2), np.float32)
    assert POOLING[mode](hidden, np.zeros((1, 3), np.int64)).tolist() == [[0.0, 0.0]]


@st.composite
def batches(draw: st.DrawFn) -> list[Floats]:
    """1 to 4 rows (t_i, h) of one h from 2 on, of any finite values of ordinary size."""
    h = draw(st.integers(2, 9))
    values = st.floats(-1e6, 1e6, width=32)
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    return [draw(npst.arrays(np.float32, (t, h), elements=values)) for t in lengths]


@given(
    rows=batches(),
    extra=st.integers(0, 40),
    side=st.sampled_from(SIDES),
    mode=st.sampled_from(sorted(POOLING)),
)
@settings(deadline=None, max_examples=200)
def test_neither_padding_nor_neighbours_change_a_bit(
    rows: list[Floats], extra: int, side: str, mode: str
) -> None:
    """A row alone and unpadded has the same bits as in any batch, padded on either side."""
    t = max(map(len, rows)) + extra
    together = POOLING[mode](*padded(rows, t, side))
    for i, row in enumerate(rows):
        alone = POOLING[mode](*padded([row], len(row), side))
        assert together[i].tobytes() == alone[0].tobytes()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("h", [2, 3, 8, 33, 384])
@pytest.mark.parametrize("mode", sorted(POOLING))
def test_no_bit_changes_at_a_model_s_sizes(mode: str, h: int, side: str) -> None:
    """The law at lengths and widths where numpy takes its blocked and vector paths."""
    random = np.random.default_rng(7)
    rows = [random.standard_normal((t, h)).astype(np.float32) for t in (1, 9, 130, 300)]
    together = POOLING[mode](*padded(rows, 411, side))
    for i, row in enumerate(rows):
        alone = POOLING[mode](*padded([row], len(row), side))
        assert together[i].tobytes() == alone[0].tobytes()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", sorted(POOLING))
def test_no_bit_changes_in_a_text_of_thousands_of_tokens(mode: str, side: str) -> None:
    """Past 5,792 tokens the weights' sum passes 2**24, where float32 has no odd integers."""
    random = np.random.default_rng(7)
    for t in (5801, 7001, 8191):
        row = random.standard_normal((t, 2)).astype(np.float32)
        alone = POOLING[mode](*padded([row], t, side))
        for padding in range(1, 200, 12):
            wider = POOLING[mode](*padded([row], t + padding, side, 1.0))
            assert wider.tobytes() == alone.tobytes(), f"{t} tokens, {padding} of padding"
