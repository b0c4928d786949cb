"""Sequences of ids as one padded array: Batch, pad; numpy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from embedserve.arrays.types import Ints


class Batch(NamedTuple):
    """Input of one forward pass: both (b, t) int64."""

    input_ids: Ints
    attention_mask: Ints


def pad(sequences: list[Ints], pad_token_id: int, side: str) -> Batch:
    """Bring sequences (t_i,) to one length t = max(t_i), at least 1, padding on `side`.

    >>> pad([np.array([5, 6]), np.array([7])], 0, "right").attention_mask.tolist()
    [[1, 1], [1, 0]]
    """
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    t = max(1, int(lengths.max()))
    position = np.arange(t)
    real = position < lengths[:, None] if side == "right" else position >= t - lengths[:, None]
    input_ids = np.full((len(sequences), t), pad_token_id, np.int64)
    input_ids[real] = np.concatenate(sequences)
    return Batch(input_ids, real.astype(np.int64))
