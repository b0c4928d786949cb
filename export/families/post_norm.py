"""A layer like BERT's: attention and feed-forward part, each with a norm after its sum."""

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

    @property
    def projections(self) -> tuple[str, str, str]:
        return self.query, self.key, self.value


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
    """What config.json says of every layer. `head`: components of a head, if not hidden / heads."""

    hidden: int
    heads: int
    inner: int
    activation: str
    eps: float
    head: int | None = None


class PostNorm:
    """All layers of one graph. `scale`: of attention's scores, if not 1 / sqrt(head)."""

    def __init__(
        self, layers: Layers, names: Names, sizes: Sizes, scale: float | None = None
    ) -> None:
        self.layers = layers
        self.names = names
        self.sizes = sizes
        size = sizes.head or sizes.hidden // sizes.heads
        self.heads = Heads(sizes.heads, size, sizes.heads)
        self.attention = Attention(layers.graph, self.heads, scale or size**-0.5)

    def layer(self, x: str, name: str, bias: str = "") -> str:
        """x (b, t, hidden) -> the same; `bias` as in Attention.bidirectional."""
        sizes, names = self.sizes, self.names
        mixed = self.attend(x, name, bias)
        x = self.add(mixed, self.heads.width, x, f"{name}.{names.mixed}", names.mixed_norm, name)
        inner = self.widen(x, f"{name}.{names.up}")
        return self.add(inner, sizes.inner, x, f"{name}.{names.down}", names.down_norm, name)

    def attend(self, x: str, name: str, bias: str) -> str:
        """x (b, t, hidden) -> (b, t, width); attention adds the projections' biases itself."""
        width = self.heads.width
        parts = [f"{name}.{part}" for part in self.names.projections]
        query, key, value = (
            self.layers.linear(x, part, self.sizes.hidden, width) for part in parts
        )
        biases = np.concatenate([self.layers.bias(part, width) for part in parts])
        added = self.layers.graph.constant(f"{name}.added", biases)
        return self.attention.bidirectional(query, key, value, bias, added)

    def widen(self, x: str, up: str) -> str:
        """x (b, t, hidden) -> (b, t, inner), activated."""
        sizes, layers = self.sizes, self.layers
        inner = layers.linear(x, up, sizes.hidden, sizes.inner)
        bias = layers.vector(f"{up}.bias", sizes.inner)
        return layers.activate_biased(inner, bias, sizes.activation)

    def add(self, x: str, inputs: int, skip: str, product: str, norm: str, name: str) -> str:
        """x (b, t, inputs) through `product`, its sum with `skip`, and the layer's `norm`."""
        hidden = self.sizes.hidden
        x = self.layers.linear(x, product, inputs, hidden)
        norm = f"{name}.{norm}"
        return self.layers.add_layer_norm(x, skip, norm, hidden, self.sizes.eps, of=product)[0]
