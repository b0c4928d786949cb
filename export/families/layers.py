"""What a layer is made of besides attention: products, norms, and the feed-forward part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from embedserve.arrays.types import Floats
from export.families.checkpoint import Checkpoint
from export.families.graph_builder import GraphBuilder


class Layers:
    """Adds parts of layers to one graph, with one checkpoint's weights, named as in the files."""

    def __init__(self, graph: GraphBuilder, weights: Checkpoint) -> None:
        self.graph = graph
        self.weights = weights

    def linear(self, x: str, name: str, inputs: int, outputs: int, bias: bool = False) -> str:
        """x (..., inputs) -> (..., outputs) by the files' `name`.weight (outputs, inputs)."""
        weight = self.weights.take(f"{name}.weight", (outputs, inputs))
        return self.product(x, name, weight, self.bias(name, outputs) if bias else None)

    def packed(
        self, x: str, name: str, inputs: int, sizes: Sequence[int], bias: bool = False
    ) -> list[str]:
        """x (..., inputs) -> (..., size) for each of `sizes`; the files have one joint matrix.

        One product each: splitting the joint product would copy all of it on a CPU.
        """
        weight = self.weights.take(f"{name}.weight", (sum(sizes), inputs))
        vector = self.bias(name, sum(sizes)) if bias else None
        parts, start = [], 0
        for n, size in enumerate(sizes):
            rows = slice(start, start + size)
            part = None if vector is None else vector[rows]
            parts.append(self.product(x, f"{name}.{n}", weight[rows], part))
            start += size
        return parts

    def product(self, x: str, name: str, weight: Floats, bias: Floats | None = None) -> str:
        """x (..., i) -> (..., o) by `weight` (o, i) and `bias` (o,), named after `name`."""
        matrix = self.graph.constant(f"{name}.weight", weight.T)
        x = self.graph.node("MatMul", [x, matrix])
        if bias is None:
            return x
        return self.graph.node("Add", [x, self.graph.constant(f"{name}.bias", bias)])

    def bias(self, name: str, size: int) -> Floats:
        """The files' `name`.bias (size,)."""
        return self.weights.take(f"{name}.bias", (size,))

    def vector(self, name: str, size: int, add: float = 0.0) -> str:
        """The files' tensor `name` (size,) as a constant, with `add` added to each component."""
        value = self.weights.take(name, (size,))
        return self.graph.constant(name, value + np.float32(add) if add else value)

    def embedding(self, name: str, rows: int, size: int, ids: str | None = None) -> str:
        """Rows of the files' table `name`.weight (rows, size)."""
        table = self.graph.constant(
            f"{name}.weight", self.weights.take(f"{name}.weight", (rows, size))
        )
        return self.graph.node("Gather", [table, ids or self.graph.ids])

    def layer_norm(self, x: str, name: str, size: int, eps: float, bias: bool = True) -> str:
        """LayerNorm over the last axis by the files' `name`.weight and, if `bias`, `name`.bias."""
        return self.graph.node(
            "LayerNormalization", [x, *self._norm(name, size, bias)], epsilon=eps
        )

    def add_layer_norm(
        self,
        x: str,
        skip: str,
        name: str,
        size: int,
        eps: float,
        bias: bool = True,
        of: str | None = None,
    ) -> tuple[str, str]:
        """LayerNorm(x + skip), and the sum itself; `of`.bias is added to x if `of` is given.

        Two operators: onnxruntime's SkipLayerNormalization takes four times as long on
        a CPU (256 x 384: 0.67 ms, Add and LayerNormalization 0.15). The server keeps it from
        fusing them (providers.Provider.disabled_optimizers).
        """
        if of is not None:
            x = self.graph.node("Add", [x, self.vector(f"{of}.bias", size)])
        total = self.graph.node("Add", [x, skip])
        return self.layer_norm(total, name, size, eps, bias), total

    def _norm(self, name: str, size: int, bias: bool) -> list[str]:
        weight = self.vector(f"{name}.weight", size)
        zero = np.zeros(size, np.float32)
        beta = (
            self.vector(f"{name}.bias", size) if bias else self.graph.constant(f"zero_{size}", zero)
        )
        return [weight, beta]

    def rms_norm(self, x: str, name: str, size: int, eps: float, add: float = 0.0) -> str:
        """RMSNorm over the last axis by the files' `name`.weight plus `add`."""
        weight = self.vector(f"{name}.weight", size, add)
        return self.graph.node("SimplifiedLayerNormalization", [x, weight], epsilon=eps, axis=-1)

    def add_rms_norm(
        self, x: str, skip: str, name: str, size: int, eps: float, add: float = 0.0
    ) -> tuple[str, str]:
        """RMSNorm(x + skip), and the sum itself."""
        output = self.graph.fresh("normed")
        weight = self.vector(f"{name}.weight", size, add)
        outputs = self.graph.nodes(
            "SkipSimplifiedLayerNormalization",
            [x, skip, weight],
            [output, "", "", f"{output}.sum"],
            epsilon=eps,
        )
        return outputs[0], outputs[3]

    def activate(self, x: str, kind: str) -> str:
        """The activation `kind`, one of ACTIVATIONS, by its name in transformers."""
        return ACTIVATIONS[kind](self.graph, x)

    def activate_biased(self, x: str, bias: str, kind: str) -> str:
        """activation(x + bias), in one operator where there is one; `bias` is a constant."""
        if kind in _BIASED:
            return self.graph.node(_BIASED[kind], [x, bias])
        return self.activate(self.graph.node("Add", [x, bias]), kind)

    def gated(self, x: str, gate: str, kind: str) -> str:
        """activation(gate) * x: SwiGLU and its relatives, https://arxiv.org/abs/2002.05202."""
        return self.graph.node("Mul", [self.activate(gate, kind), x])


def _gelu(graph: GraphBuilder, x: str) -> str:
    return graph.node("Gelu", [x])


def _gelu_tanh(graph: GraphBuilder, x: str) -> str:
    return graph.node("FastGelu", [x])


def _silu(graph: GraphBuilder, x: str) -> str:
    return graph.node("QuickGelu", [x], alpha=1.0)  # x * sigmoid(x)


def _relu(graph: GraphBuilder, x: str) -> str:
    return graph.node("Relu", [x])


# transformers' names; all others are refused.
ACTIVATIONS: Mapping[str, Callable[[GraphBuilder, str], str]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": _relu,
    "silu": _silu,
    "swish": _silu,
}

# Operators that take a bias, too.
_BIASED: Mapping[str, str] = {
    "gelu": "BiasGelu",
    "gelu_new": "FastGelu",
    "gelu_pytorch_tanh": "FastGelu",
}
