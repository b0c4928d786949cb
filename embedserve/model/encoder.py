"""One pass of a model: pad, run, check the shape; which rows are vectors. Encoder; Backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from embedserve.arrays.batch import Batch, pad
from embedserve.arrays.types import Floats, Ints
from embedserve.artifact import Manifest
from embedserve.model.cost import Shape
from embedserve.model.stop import Stop


class Backend(Protocol):
    """Runs one pass in an inference thread: (b, t) ids and mask -> (b, dim) float32.

    `alone`: no other pass runs, every core may be used. `stop` may be asked from another thread;
    then it raises soon.
    """

    def embed(self, batch: Batch, alone: bool, stop: Stop) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Encoder:
    """A backend with what scheduling and padding must know of its model. Safe in any thread."""

    name: str
    fingerprint: str
    backend: Backend
    shape: Shape
    dimension: int
    pad_token_id: int
    padding_side: str
    rate: float = 0.0  # cost units a second in one lane, measured at start; 0: not known
    is_bag: bool = False  # a text may have no token, and a vector may be zeros

    @classmethod
    def of(cls, name: str, manifest: Manifest, backend: Backend) -> Encoder:
        """Of an artifact's facts, for a model that is served as `name`."""
        # Attention's share of a transformer layer's work is t / (6 h): 2 * t * h products of
        # scores and values per token against 12 * h * h of the projections.
        quadratic = math.inf if manifest.is_bag else 6.0 * manifest.hidden_size
        return cls(
            name=name,
            fingerprint=manifest.fingerprint,
            backend=backend,
            shape=Shape(name, quadratic, manifest.masked_up_to),
            dimension=manifest.dimension,
            pad_token_id=manifest.pad_token_id,
            padding_side=manifest.padding_side,
            is_bag=manifest.is_bag,
        )

    def run(
        self, sequences: Sequence[Ints], alone: bool = False, stop: Stop | None = None
    ) -> Floats:
        """One pass: sequences (t_i,) int64 -> (b, dimension) float32.

        ValueError when the backend gives rows of another shape. What the backend raises is raised.
        """
        batch = pad(list(sequences), self.pad_token_id, self.padding_side)
        rows = self.backend.embed(batch, alone, stop or Stop())
        if rows.shape != (len(sequences), self.dimension):
            raise ValueError(f"the pass gave rows of shape {rows.shape}")
        return rows

    def usable(self, rows: Floats) -> list[bool]:
        """Whether each row (b, dimension) is finite, and not zero unless the model is a bag."""
        # A NaN or an infinity anywhere in a row, or a row of zeros, shows in its square sum.
        squares = np.einsum("bd,bd->b", rows, rows)
        return [s < float("inf") and (s > 0 or self.is_bag) for s in squares.tolist()]
