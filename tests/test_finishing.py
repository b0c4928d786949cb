"""Finishing: dense, layer_norm, normalize and the Matryoshka cut, by hand and row by row."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from embedserve.arrays.finishing import ACTIVATIONS, dense, layer_norm, normalize, truncate
from embedserve.arrays.types import Floats

IDENTITY = "torch.nn.modules.linear.Identity"
TANH = "torch.nn.modules.activation.Tanh"
RELU = "torch.nn.modules.activation.ReLU"
SIGMOID = "torch.nn.modules.activation.Sigmoid"


def floats(*rows: list[float]) -> Floats:
    """Rows as float32."""
    return np.array(rows, np.float32)


# rows [[1, 2], [-3, 0.5]] by weight [[1, 1], [2, 0], [0, -1]]: [[3, 2, -2], [-2.5, -6, -0.5]].
ROWS = floats([1, 2], [-3, 0.5])
WEIGHT = floats([1, 1], [2, 0], [0, -1])


def test_dense_without_bias_by_hand() -> None:
    """rows (b, i) by weight (o, i) gives (b, o)."""
    out = dense(ROWS, WEIGHT, None, IDENTITY)
    assert out.dtype == np.float32
    assert out.tolist() == [[3, 2, -2], [-2.5, -6, -0.5]]


def test_dense_adds_the_bias_before_the_activation() -> None:
    """relu(x + bias), not relu(x) + bias."""
    out = dense(ROWS, WEIGHT, np.array([-2, 7, 1], np.float32), RELU)
    assert out.tolist() == [[1, 9, 0], [0, 1, 0.5]]


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        (IDENTITY, lambda x: x),
        (TANH, math.tanh),
        (RELU, lambda x: max(x, 0.0)),
        (SIGMOID, lambda x: 1 / (1 + math.exp(-x))),
    ],
    ids=["identity", "tanh", "relu", "sigmoid"],
)
def test_activation(name: str, by_hand: Callable[[float], float]) -> None:
    """Each activation is the function of its name, in float32."""
    values = [-3.0, -0.5, 0.0, 0.25, 4.0]
    out = ACTIVATIONS[name](floats(values))
    assert out.dtype == np.float32
    assert out[0].tolist() == pytest.approx([by_hand(v) for v in values], rel=1e-6)


def test_no_activation_is_untested() -> None:
    """The table holds what the test above computes by hand."""
    assert set(ACTIVATIONS) == {IDENTITY, TANH, RELU, SIGMOID}


@pytest.mark.parametrize(("name", "low"), [(TANH, -1.0), (SIGMOID, 0.0)], ids=["tanh", "sigmoid"])
def test_activation_saturates_without_a_warning(name: str, low: float) -> None:
    """Far from zero an activation is at its limit; warnings are errors here."""
    assert ACTIVATIONS[name](floats([-1000.0, 1000.0])).tolist() == [[low, 1.0]]


def test_layer_norm_by_hand() -> None:
    """[2, 4, 4, 6]: mean 4, biased variance 2; with eps 2 the divisor is 2."""
    out = layer_norm(floats([2, 4, 4, 6]), 2.0, None, None)
    assert out.dtype == np.float32
    assert out.tolist() == [[-1, 0, 0, 1]]


def test_layer_norm_scales_then_shifts() -> None:
    """weight and bias act on each component, in this order."""
    weight, bias = np.array([1, 2, 3, 4], np.float32), np.array([10, 20, 30, 40], np.float32)
    out = layer_norm(floats([2, 4, 4, 6], [6, 4, 4, 2]), 2.0, weight, bias)
    assert out.tolist() == [[9, 20, 30, 44], [11, 20, 30, 36]]


def test_layer_norm_of_equal_components_is_zero() -> None:
    """eps keeps a row without variance finite."""
    assert layer_norm(floats([5, 5, 5]), 1e-5, None, None).tolist() == [[0, 0, 0]]


def test_normalize_by_hand() -> None:
    """3, 4, 5 and 5, 12, 13; each row by its own length."""
    out = normalize(floats([3, -4], [5, 12]))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [[3 / 5, -4 / 5], [5 / 13, 12 / 13]], rtol=1e-6)


def test_a_zero_row_stays_zero() -> None:
    """No direction stays no direction: no NaN, no warning."""
    assert normalize(floats([0, 0, 0])).tolist() == [[0, 0, 0]]


def test_truncate_keeps_the_first_components() -> None:
    """The cut rows have length 1 again."""
    out = truncate(floats([3, 4, 100], [8, -6, 100]), 2)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [[0.6, 0.8], [0.8, -0.6]], rtol=1e-6)


def test_truncate_to_the_whole_is_normalize() -> None:
    """All components kept: only the length changes."""
    assert truncate(ROWS, 2).tobytes() == normalize(ROWS).tobytes()


def matrices(low: float) -> st.SearchStrategy[Floats]:
    """(1..5, 2..70) float32, each component at least `low` away from zero, so none is all zero."""
    values = st.floats(low, 1000, width=32) | st.floats(-1000, -low, width=32)
    shape = st.tuples(st.integers(1, 5), st.integers(2, 70))
    return shape.flatmap(lambda s: npst.arrays(np.float32, s, elements=values))


@given(rows=matrices(0.0078125))
@settings(deadline=None)
def test_normalized_rows_have_length_one(rows: Floats) -> None:
    """Length 1 within float32's rounding, direction kept."""
    out = normalize(rows).astype(np.float64)
    exact = rows.astype(np.float64)
    assert np.linalg.norm(out, axis=1) == pytest.approx(1, abs=1e-6)
    assert (out * exact).sum(axis=1) == pytest.approx(np.linalg.norm(exact, axis=1), rel=1e-6)


@given(rows=matrices(0.0078125), data=st.data())
@settings(deadline=None)
def test_truncate_does_not_care_whether_rows_were_scaled(rows: Floats, data: st.DataObject) -> None:
    """Normalize then cut equals cut then normalize."""
    dimensions = data.draw(st.integers(1, rows.shape[1]))
    np.testing.assert_allclose(
        truncate(normalize(rows), dimensions), truncate(rows, dimensions), atol=1e-6
    )


def _dense(rows: Floats) -> Floats:
    random = np.random.default_rng(rows.shape[1])
    weight = random.standard_normal((3, rows.shape[1])).astype(np.float32)
    return dense(rows, weight, np.ones(3, np.float32), TANH)


STEPS: dict[str, Callable[[Floats], Floats]] = {
    "dense": _dense,
    "layer_norm": lambda rows: layer_norm(rows, 1e-5, None, None),
    "normalize": normalize,
    "truncate": lambda rows: truncate(rows, max(1, rows.shape[1] // 2)),
}


@pytest.mark.parametrize("name", STEPS)
@given(rows=matrices(0.0078125))
@settings(deadline=None)
def test_a_row_alone_has_the_bits_it_has_among_others(name: str, rows: Floats) -> None:
    """No step lets a row's neighbours into its sums."""
    together = STEPS[name](rows)
    for i in range(len(rows)):
        assert STEPS[name](rows[i : i + 1])[0].tobytes() == together[i].tobytes()


@pytest.mark.parametrize("h", [384, 768, 1024])
@pytest.mark.parametrize("name", STEPS)
def test_a_row_s_bits_at_a_model_s_sizes(name: str, h: int) -> None:
    """The same at widths where a matrix product would take another path for another b."""
    rows = np.random.default_rng(3).standard_normal((33, h)).astype(np.float32)
    together = STEPS[name](rows)
    for i in range(len(rows)):
        assert STEPS[name](rows[i : i + 1])[0].tobytes() == together[i].tobytes()


@pytest.mark.parametrize("name", STEPS)
def test_a_step_leaves_its_input_alone(name: str) -> None:
    """Rows that were handed in are not written to."""
    rows = np.arange(1, 13, dtype=np.float32).reshape(2, 6)
    before = rows.copy()
    STEPS[name](rows)
    assert rows.tobytes() == before.tobytes()
