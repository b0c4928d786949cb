"""Token embeddings (b, t, h) and mask (b, t) -> (b, h): the POOLING table, numpy only.

Every mode gives a row the same bits whatever else is in the batch and however much padding follows
it: sums run token by token along the second axis, so padding only adds zeros at an end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedserve.arrays.types import Floats, Ints


def mean(token_embeddings: Floats, attention_mask: Ints) -> Floats:
    """Average the embeddings of real tokens.

    token_embeddings (b, t, h) float32, attention_mask (b, t) of 0/1 -> (b, h) float32.
    A row without real tokens gives zeros. Same as Pooling("mean") of sentence-transformers.

    >>> mean(np.array([[[1.0], [3.0], [9.0]]], np.float32), np.array([[1, 1, 0]])).tolist()
    [[2.0]]
    """
    return _sum(token_embeddings, attention_mask) / _count(attention_mask)


def mean_sqrt_len_tokens(token_embeddings: Floats, attention_mask: Ints) -> Floats:
    """Sum the embeddings of real tokens, divided by the square root of their number.

    Shapes as in `mean`. Same as Pooling("mean_sqrt_len_tokens") of sentence-transformers.

    >>> e = np.ones((1, 5, 1), np.float32)
    >>> mean_sqrt_len_tokens(e, np.array([[1, 1, 1, 1, 0]])).tolist()
    [[2.0]]
    """
    return _floats(_sum(token_embeddings, attention_mask) / np.sqrt(_count(attention_mask)))


def weightedmean(token_embeddings: Floats, attention_mask: Ints) -> Floats:
    """Average the embeddings of real tokens, the i-th real token (from 1) weighing i.

    Shapes as in `mean`. Same as Pooling("weightedmean") of sentence-transformers for a text alone;
    there, left padding shifts the weights by the longest text of the batch, here it does not.

    >>> e = np.array([[[1.0], [4.0], [9.0]]], np.float32)
    >>> weightedmean(e, np.array([[1, 1, 0]])).tolist()
    [[3.0]]
    >>> weightedmean(e, np.array([[0, 1, 1]])).tolist()
    [[7.333333492279053]]
    """
    position = np.cumsum(attention_mask, axis=1) * attention_mask
    weights = position.astype(np.float32)
    # In integers: a float sum along the last axis would depend on the padding.
    total = np.maximum(position.sum(axis=1, keepdims=True).astype(np.float32), np.float32(1e-9))
    weighted = (token_embeddings * weights[:, :, None]).sum(axis=1)
    return _floats(weighted / total)


def cls(token_embeddings: Floats, attention_mask: Ints) -> Floats:
    """Take the first real token's embedding. Shapes as in `mean`.

    >>> cls(np.array([[[1.0], [4.0], [9.0]]], np.float32), np.array([[0, 1, 1]])).tolist()
    [[4.0]]
    """
    first = attention_mask.argmax(axis=1)
    return _floats(token_embeddings[np.arange(len(first)), first])


def lasttoken(token_embeddings: Floats, attention_mask: Ints) -> Floats:
    """Take the last real token's embedding. Shapes as in `mean`.

    >>> lasttoken(np.array([[[1.0], [4.0], [9.0]]], np.float32), np.array([[1, 1, 0]])).tolist()
    [[4.0]]
    """
    t = attention_mask.shape[1]
    last = t - 1 - attention_mask[:, ::-1].argmax(axis=1)
    return _floats(token_embeddings[np.arange(len(last)), last])


def maximum(token_embeddings: Floats, attention_mask: Ints) -> Floats:
    """Take the largest value of each component over the real tokens. Shapes as in `mean`.

    >>> maximum(np.array([[[1.0], [4.0], [9.0]]], np.float32), np.array([[1, 1, 0]])).tolist()
    [[4.0]]
    """
    real = attention_mask[:, :, None].astype(bool)
    return _floats(np.where(real, token_embeddings, np.float32("-inf")).max(axis=1))


Pool = Callable[[Floats, Ints], Floats]

# The mean of a graph that only looks rows up, as torch's EmbeddingBag takes it: a text without
# tokens has a vector, zeros, where any other model has none.
BAG = "bag"

# sentence-transformers' names.
POOLING: Mapping[str, Pool] = {
    "cls": cls,
    "max": maximum,
    "mean": mean,
    "mean_sqrt_len_tokens": mean_sqrt_len_tokens,
    "weightedmean": weightedmean,
    "lasttoken": lasttoken,
    BAG: mean,
}


def pool(modes: Sequence[str], token_embeddings: Floats, attention_mask: Ints) -> Floats:
    """Apply each mode and concatenate: (b, t, h), (b, t) -> (b, h * len(modes)) float32."""
    parts = [POOLING[mode](token_embeddings, attention_mask) for mode in modes]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _sum(token_embeddings: Floats, attention_mask: Ints) -> Floats:
    if attention_mask.all():  # a pass of equal lengths: no copy of (b, t, h)
        return _floats(token_embeddings.sum(axis=1))
    return _floats((token_embeddings * attention_mask[:, :, None].astype(np.float32)).sum(axis=1))


def _count(attention_mask: Ints) -> Floats:
    count = attention_mask.sum(axis=1, keepdims=True).astype(np.float32)
    return _floats(np.maximum(count, np.float32(1e-9)))


def _floats(array: NDArray[Any]) -> Floats:
    """numpy's stubs lose the type in reductions; the data is float32 already."""
    floats: Floats = array.astype(np.float32, copy=False)
    return floats
