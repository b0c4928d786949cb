"""The graph of one decoder: pre-norms, rotary positions, grouped heads, a gated feed-forward part.

Llama (https://arxiv.org/abs/2302.13971), and its descendants by a Variant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.families import even_length
from export.families.attention import Attention, Heads
from export.families.family import Built
from export.families.layers import Layers
from export.families.rotary import Rotary, frequencies, positions
from export.files import refused

_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Variant:
    """How one model type differs from Llama.

    `head_norms`: queries and keys are normalized, head by head.
    `projection_bias`: query, key and value projections have a bias, whatever config.json says.
    `windows`: which layers use sliding_window: "none", "all", or as "layer_types" says.
    `bidirectional`: each token sees all others.
    `norm_offset` is added to the weights of norms.
    `outer_norms`: the outputs of attention and the feed-forward part are normalized, too.
    `scaled_embeddings`: embeddings are multiplied by the square root of their size.
    `query_scalar`: scores are divided by the root of query_pre_attn_scalar, not of the heads' size.
    `softcap`: scores are bounded by attn_logit_softcapping.
    `scaled_queries`: queries are scaled by position, as rope_parameters say (Llama 4's method).
    `activation`: the key of config.json that names the activation.
    """

    head_norms: bool = False
    projection_bias: bool = False
    windows: str = "none"
    bidirectional: bool = False
    norm_offset: float = 0.0
    outer_norms: bool = False
    scaled_embeddings: bool = False
    query_scalar: bool = False
    softcap: bool = False
    scaled_queries: bool = False
    activation: str = "hidden_act"


class Decoder:
    """Builds the graph of one configuration, as today's transformers reads it."""

    def __init__(self, config: Any, layers: Layers, variant: Variant) -> None:
        self._config = config
        self._layers = layers
        self._variant = variant
        count = config.num_attention_heads
        # Configurations that lack head_dim hold None in some versions and no attribute in others.
        size = getattr(config, "head_dim", None) or config.hidden_size // count
        self._heads = Heads(count, size, config.num_key_value_heads or count)
        scalar = config.query_pre_attn_scalar if variant.query_scalar else size
        both_ways = getattr(config, "use_bidirectional_attention", False)
        self._is_causal = not (self._declared_bidirectional() or both_ways)
        if self._is_causal:
            even_length.pad(layers.graph)
        self._attention = Attention(layers.graph, self._heads, scalar**-0.5)
        self._types = self._layer_types()
        self._rotaries = self._rotary_of_types()
        self._bias = bool(getattr(config, "attention_bias", False))

    def build(self) -> Built:
        """Add all nodes."""
        config, layers = self._config, self._layers
        x = layers.embedding("embed_tokens", config.vocab_size, config.hidden_size)
        if self._variant.scaled_embeddings:
            x = layers.graph.node("Mul", [x, layers.graph.number(config.hidden_size**0.5)])
        normed = self._norm(x, "layers.0.input_layernorm")
        for n in range(config.num_hidden_layers):
            is_last = n + 1 == config.num_hidden_layers
            following = "norm" if is_last else f"layers.{n + 1}.input_layernorm"
            normed, x = self._layer(normed, x, n, following)
        if self._is_causal:
            normed = even_length.trim(layers.graph, normed)
        return Built(normed, config.hidden_size, self._attention.masked_up_to)

    def _layer(self, normed: str, x: str, n: int, following: str) -> tuple[str, str]:
        """`normed` and the residual `x` -> those of the next layer, whose norm is `following`."""
        name, after = f"layers.{n}", f"layers.{n}.post_attention_layernorm"
        mixed = self._attend(normed, f"{name}.self_attn", self._types[n])
        if self._variant.outer_norms:
            mixed = self._norm(mixed, after)
            after = f"{name}.pre_feedforward_layernorm"
        normed, x = self._add_norm(mixed, x, after)
        fed = self._feed(normed, f"{name}.mlp")
        if self._variant.outer_norms:
            fed = self._norm(fed, f"{name}.post_feedforward_layernorm")
        return self._add_norm(fed, x, following)

    def _attend(self, x: str, name: str, layer_type: str) -> str:
        heads, layers, hidden = self._heads, self._layers, self._config.hidden_size
        bias = self._variant.projection_bias or self._bias
        query = layers.linear(x, f"{name}.q_proj", hidden, heads.width, bias=bias)
        key = layers.linear(x, f"{name}.k_proj", hidden, heads.shared_width, bias=bias)
        value = layers.linear(x, f"{name}.v_proj", hidden, heads.shared_width, bias=bias)
        if self._variant.head_norms:
            query = self._head_norm(query, f"{name}.q_norm", heads.width)
            key = self._head_norm(key, f"{name}.k_norm", heads.shared_width)
        rotary = self._rotaries[layer_type]
        query, key = rotary.rotate(query), rotary.rotate(key)
        if self._variant.scaled_queries:
            query = layers.graph.node("Mul", [query, self._query_scales()])
        mixed = self._mix(query, key, value, layer_type)
        return layers.linear(mixed, f"{name}.o_proj", heads.width, hidden, bias=self._bias)

    def _mix(self, query: str, key: str, value: str, layer_type: str) -> str:
        window = self._config.sliding_window if layer_type == _SLIDING else None
        softcap = (self._config.attn_logit_softcapping or 0.0) if self._variant.softcap else 0.0
        if self._is_causal:
            return self._attention.causal(query, key, value, window or -1, softcap)
        if softcap:
            raise refused(
                f"config.json: attn_logit_softcapping = {softcap!r} with is_causal = false; "
                "accepted: null"
            )
        if window is None:
            return self._attention.bidirectional(query, key, value)
        # With is_causal = false tokens see as far as `window`; with Gemma 3's own key, one less.
        reach = window if self._declared_bidirectional() else window - 1
        return self._attention.windowed(query, key, value, reach)

    def _declared_bidirectional(self) -> bool:
        return self._variant.bidirectional or not getattr(self._config, "is_causal", True)

    def _query_scales(self) -> str:
        """1 + beta * log(1 + position // length) as a column (t, 1); added once per graph."""
        graph, parameters = self._layers.graph, self._config.rope_parameters
        if not graph.has("query_scales"):
            length = graph.number(float(parameters["original_max_position_embeddings"]))
            times = graph.node("Floor", [graph.node("Div", [positions(graph), length])])
            logarithm = graph.node("Log", [graph.node("Add", [times, graph.number(1.0)])])
            beta = graph.number(float(parameters["llama_4_scaling_beta"]))
            part = graph.node("Mul", [logarithm, beta])
            graph.node("Add", [part, graph.number(1.0)], "query_scales")
        return "query_scales"

    def _feed(self, x: str, name: str) -> str:
        config, layers = self._config, self._layers
        hidden, inner = config.hidden_size, config.intermediate_size
        bias = bool(getattr(config, "mlp_bias", False))
        up = layers.linear(x, f"{name}.up_proj", hidden, inner, bias=bias)
        gate = layers.linear(x, f"{name}.gate_proj", hidden, inner, bias=bias)
        gated = layers.gated(up, gate, getattr(config, self._variant.activation))
        return layers.linear(gated, f"{name}.down_proj", inner, hidden, bias=bias)

    def _norm(self, x: str, name: str) -> str:
        size, eps = self._config.hidden_size, self._config.rms_norm_eps
        return self._layers.rms_norm(x, name, size, eps, self._variant.norm_offset)

    def _add_norm(self, x: str, skip: str, name: str) -> tuple[str, str]:
        size, eps = self._config.hidden_size, self._config.rms_norm_eps
        return self._layers.add_rms_norm(x, skip, name, size, eps, self._variant.norm_offset)

    def _head_norm(self, x: str, name: str, width: int) -> str:
        """RMSNorm of each head of x (b, t, width)."""
        graph, size = self._layers.graph, self._heads.size
        x = graph.node("Reshape", [x, graph.integers(0, 0, -1, size)])
        offset = self._variant.norm_offset
        x = self._layers.rms_norm(x, name, size, self._config.rms_norm_eps, offset)
        return graph.node("Reshape", [x, graph.integers(0, 0, width)])

    def _layer_types(self) -> list[str]:
        """Each layer's type. StartupError for unknown types, or a missing or wrong window."""
        config, count = self._config, self._config.num_hidden_layers
        if self._variant.windows == "none":
            return [_FULL] * count
        window = config.sliding_window
        if self._variant.windows == "all":
            types = [_FULL if window is None else _SLIDING] * count
        else:
            types = list(config.layer_types)
        if len(types) != count or not set(types) <= {_FULL, _SLIDING}:
            raise refused(
                f"config.json: layer_types = {types!r}; accepted: {_FULL} or {_SLIDING} for each "
                f"of {count} layers"
            )
        if _SLIDING in types and (window is None or window < 1):
            raise refused(
                f"config.json: sliding_window = {window!r} with layers of {_SLIDING}; accepted: "
                "an integer from 1"
            )
        return types

    def _rotary_of_types(self) -> dict[str, Rotary]:
        parameters = self._config.rope_parameters
        by_type = _FULL in parameters or _SLIDING in parameters
        if not by_type:
            rotary = self._rotary("rotary", parameters, None)
            return dict.fromkeys(self._types, rotary)
        return {
            kind: self._rotary(f"rotary_{kind}", parameters[kind], kind)
            for kind in sorted(set(self._types))
        }

    def _rotary(self, name: str, parameters: dict[str, Any], kind: str | None) -> Rotary:
        where = "config.json: rope_parameters" + (f" of {kind}" if kind else "")
        if self._variant.scaled_queries:
            missing = {"llama_4_scaling_beta", "original_max_position_embeddings"} - set(parameters)
            if missing:
                raise refused(
                    f"{where}: {', '.join(sorted(missing))} missing; numbers are accepted"
                )
            # _query_scales reads the first, nothing the second: a copy of the model's own limit.
            others = ("llama_4_scaling_beta", "max_position_embeddings")
            parameters = {k: v for k, v in parameters.items() if k not in others}
        values = frequencies(self._config, parameters, self._heads.size, where, kind)
        return Rotary(self._layers.graph, name, *values)
