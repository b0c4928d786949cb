"""What a model does to pooled rows (b, h): dense, layer_norm, normalize, and the Matryoshka cut.

Each function works row by row, so a row's bits do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from embedserve.arrays.types import Floats

# torch's activation class -> numpy. Sources: the definitions in torch.nn's documentation.
ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "torch.nn.modules.linear.Identity": lambda x: x,
    "torch.nn.modules.activation.Tanh": np.tanh,
    "torch.nn.modules.activation.ReLU": lambda x: np.maximum(x, np.float32(0)),
    "torch.nn.modules.activation.Sigmoid": lambda x: np.exp(-np.logaddexp(np.float32(0), -x)),
}


def dense(rows: Floats, weight: Floats, bias: Floats | None, activation: str) -> Floats:
    """activation(rows @ weight.T + bias): rows (b, i), weight (o, i), bias (o,) -> (b, o) float32.

    One product per row: a product of the whole matrix may sum in another order for another b.
    """
    out = np.stack([weight @ row for row in rows])
    if bias is not None:
        out += bias
    return ACTIVATIONS[activation](out)


def layer_norm(rows: Floats, eps: float, weight: Floats | None, bias: Floats | None) -> Floats:
    """Subtract each row's mean, divide by sqrt(variance + eps), then scale and shift.

    rows (b, h) float32 -> (b, h) float32; variance is the biased one, as in torch's layer_norm.

    >>> layer_norm(np.array([[1.0, 3.0]], np.float32), 0.0, None, None).tolist()
    [[-1.0, 1.0]]
    """
    centred = rows - rows.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    out: Floats = centred / np.sqrt(variance + np.float32(eps))
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def normalize(rows: Floats) -> Floats:
    """Scale each row to length 1: (b, h) float32 -> (b, h) float32. A zero row stays zero.

    Same as torch's functional.normalize (eps 1e-12).

    >>> normalize(np.array([[3.0, 4.0]], np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    norm = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    out: Floats = rows / np.maximum(norm, np.float32(1e-12))
    return out


def truncate(rows: Floats, dimensions: int) -> Floats:
    """Keep the first `dimensions` components and scale to length 1: (b, h) -> (b, dimensions).

    A row scaled before gives the same direction, so the order of the two does not matter.
    Source: Matryoshka Representation Learning, arXiv:2205.13147.

    >>> truncate(np.array([[3.0, 4.0, 9.0]], np.float32), 2).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    return normalize(rows[:, :dimensions])
