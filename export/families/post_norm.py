"""A layer of BERT's kind: attention and feed-forward part, each normalized after its sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.families.attention import Attention, Heads
from export.families.layers import Layers


@dataclass(frozen=True, slots=True)
class Names:
    """What the files call a layer's parts, after the layer's own name."""

    query: str
    key: str
    value: str
    mixed: str
    mixed_norm: str
    up: str
    down: str
    down_norm: str


BERT = Names(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    mixed="attention.output.dense",
    mixed_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    down_norm="output.LayerNorm",
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a layer of this kind is given by config.json."""

    hidden: int
    heads: int
    inner: int
    activation: str
    eps: float


class PostNorm:
    """All layers of one graph; their attention is `attention`."""

    def __init__(self, layers: Layers, names: Names, sizes: Sizes) -> None:
        self._layers = layers
        self._names = names
        self._sizes = sizes
        size = sizes.hidden // sizes.heads
        self.heads = Heads(sizes.heads, size, sizes.heads)
        self.attention = Attention(layers.graph, self.heads, size**-0.5)

    def layer(self, x: str, name: str, bias: str = "") -> str:
        """x (b, t, hidden) -> the same; `bias` as in Attention.bidirectional."""
        query, key, value = (self.project(x, f"{name}.{part}") for part in self._projections())
        mixed = self.attention.bidirectional(query, key, value, bias, self.added(name))
        return self.feed(self.residual(mixed, x, name), name)

    def project(self, x: str, name: str) -> str:
        """x by `name`.weight, without its bias."""
        return self._layers.linear(x, name, self._sizes.hidden, self.heads.width)

    def added(self, name: str) -> str:
        """The biases of query, key and value (3 * width,), which attention adds itself."""
        width = self.heads.width
        biases = [self._layers.bias(f"{name}.{part}", width) for part in self._projections()]
        return self._layers.graph.constant(f"{name}.added", np.concatenate(biases))

    def residual(self, mixed: str, x: str, name: str) -> str:
        """The product after attention, its sum with `x`, and the norm."""
        return self._sum(mixed, x, name, self._names.mixed, self._names.mixed_norm)

    def feed(self, x: str, name: str) -> str:
        sizes, layers = self._sizes, self._layers
        up = f"{name}.{self._names.up}"
        inner = layers.linear(x, up, sizes.hidden, sizes.inner)
        bias = layers.vector(f"{up}.bias", sizes.inner)
        inner = layers.activate_biased(inner, bias, sizes.activation)
        return self._sum(inner, x, name, self._names.down, self._names.down_norm)

    def _sum(self, x: str, skip: str, name: str, product: str, norm: str) -> str:
        sizes, product = self._sizes, f"{name}.{product}"
        inputs = self.heads.width if product.endswith(self._names.mixed) else sizes.inner
        x = self._layers.linear(x, product, inputs, sizes.hidden)
        normed, _ = self._layers.add_layer_norm(
            x, skip, f"{name}.{norm}", sizes.hidden, sizes.eps, of=product
        )
        return normed

    def _projections(self) -> tuple[str, str, str]:
        return self._names.query, self._names.key, self._names.value
