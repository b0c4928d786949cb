"""Decoders after Llama: llama, mistral, qwen2, qwen3; causal, or bidirectional by is_causal."""

from __future__ import annotations

from typing import Any

from export.families.attention import Attention, Heads
from export.families.family import Built, Family
from export.families.layers import ACTIVATIONS, Layers
from export.families.rotary import Rotary, frequencies

_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_READ = (
    *_SIZES,
    *_ROPE,
    "rms_norm_eps",
    "is_causal",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
)
_LANGUAGE_MODEL = ("lm_head\\.weight", r".*rotary_emb\.inv_freq")


def _build(config: Any, layers: Layers) -> Built:
    return _Decoder(config, layers).build()


class _Decoder:
    """One decoder's graph: pre-norm, rotary positions, a gated feed-forward part."""

    def __init__(self, config: Any, layers: Layers) -> None:
        self.config = config
        self.layers = layers
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.heads = Heads(heads, size, getattr(config, "num_key_value_heads", None) or heads)
        self.attention = Attention(layers.graph, self.heads, size**-0.5)
        values = frequencies(config, config.rope_parameters, size, "config.json: rope_parameters")
        self.rotary = Rotary(layers.graph, "rotary", *values)

    def build(self) -> Built:
        config, layers = self.config, self.layers
        size, eps = config.hidden_size, config.rms_norm_eps
        x = layers.embedding("embed_tokens", config.vocab_size, size)
        normed = layers.rms_norm(x, "layers.0.input_layernorm", size, eps)
        for n in range(config.num_hidden_layers):
            name = f"layers.{n}"
            mixed = self.attend(normed, f"{name}.self_attn", self._window(n))
            after = f"{name}.post_attention_layernorm"
            normed, x = layers.add_rms_norm(mixed, x, after, size, eps)
            is_last = n + 1 == config.num_hidden_layers
            following = "norm" if is_last else f"layers.{n + 1}.input_layernorm"
            fed = self.feed(normed, f"{name}.mlp")
            normed, x = layers.add_rms_norm(fed, x, following, size, eps)
        return Built(normed, size, self.attention.masked_up_to)

    def attend(self, x: str, name: str, window: int | None) -> str:
        heads, hidden = self.heads, self.config.hidden_size
        query = self.project(x, f"{name}.q_proj", heads.width)
        key = self.project(x, f"{name}.k_proj", heads.shared_width)
        value = self.project(x, f"{name}.v_proj", heads.shared_width)
        if self.config.model_type == "qwen3":
            query = self.head_norm(query, f"{name}.q_norm", heads.width)
            key = self.head_norm(key, f"{name}.k_norm", heads.shared_width)
        query, key = self.rotary.rotate(query), self.rotary.rotate(key)
        mixed = self.mix(query, key, value, window)
        return self.layers.linear(
            mixed, f"{name}.o_proj", heads.width, hidden, bias=self._output_bias()
        )

    def mix(self, query: str, key: str, value: str, window: int | None) -> str:
        if getattr(self.config, "is_causal", True):
            return self.attention.causal(query, key, value, window or -1)
        if window:
            return self.attention.windowed(query, key, value, window)
        return self.attention.bidirectional(query, key, value)

    def project(self, x: str, name: str, outputs: int) -> str:
        bias = self.config.model_type == "qwen2" or getattr(self.config, "attention_bias", False)
        return self.layers.linear(x, name, self.config.hidden_size, outputs, bias=bias)

    def head_norm(self, x: str, name: str, width: int) -> str:
        """RMSNorm of each head of x (b, t, width)."""
        graph, size = self.layers.graph, self.heads.size
        x = graph.node("Reshape", [x, graph.integers(0, 0, -1, size)])
        x = self.layers.rms_norm(x, name, size, self.config.rms_norm_eps)
        return graph.node("Reshape", [x, graph.integers(0, 0, width)])

    def feed(self, x: str, name: str) -> str:
        config, layers = self.config, self.layers
        hidden, inner, bias = config.hidden_size, config.intermediate_size, self._feed_bias()
        up = layers.linear(x, f"{name}.up_proj", hidden, inner, bias=bias)
        gate = layers.linear(x, f"{name}.gate_proj", hidden, inner, bias=bias)
        gated = layers.gated(up, gate, config.hidden_act)
        return layers.linear(gated, f"{name}.down_proj", inner, hidden, bias=bias)

    def _window(self, n: int) -> int | None:
        window: int | None = getattr(self.config, "sliding_window", None)
        types = getattr(self.config, "layer_types", None)
        # mistral has a window for all layers, and no types.
        return window if types is None or types[n] == "sliding_attention" else None

    def _output_bias(self) -> bool:
        return self.config.model_type != "qwen2" and getattr(self.config, "attention_bias", False)

    def _feed_bias(self) -> bool:
        return bool(getattr(self.config, "mlp_bias", False))


def _family(*more: str, **accepted: tuple[object, ...]) -> Family:
    keys = {
        **dict.fromkeys((*_READ, *more)),
        "hidden_act": tuple(ACTIVATIONS),
        "pretraining_tp": (1, None),
        **accepted,
    }
    return Family(keys, _build, prefixes=("model.",), ignored=_LANGUAGE_MODEL)


FAMILIES = {
    "llama": _family("attention_bias", "mlp_bias"),
    "mistral": _family(),
    "qwen2": _family(),
    "qwen3": _family("attention_bias"),
}
