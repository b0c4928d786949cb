"""ModernBERT: pre-norm, a gated feed-forward part, rotary positions, local and global layers.

Warner et al., https://arxiv.org/abs/2412.13663.
"""

from __future__ import annotations

from typing import Any

from export.families.attention import Attention, Heads
from export.families.family import Built, Family
from export.families.layers import ACTIVATIONS, Layers
from export.families.rotary import Rotary, frequencies
from export.files import refused

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def _build(config: Any, layers: Layers) -> Built:
    return _ModernBert(config, layers).build()


class _ModernBert:
    def __init__(self, config: Any, layers: Layers) -> None:
        self.config = config
        self.layers = layers
        self.kinds = _kinds(config)
        count = config.num_attention_heads
        self.heads = Heads(count, config.hidden_size // count, count)
        self.attention = Attention(layers.graph, self.heads, self.heads.size**-0.5)
        self.rotaries = {kind: self.rotary(kind) for kind in sorted(set(self.kinds))}

    def rotary(self, kind: str) -> Rotary:
        where = f"config.json: rope_parameters: {kind}"
        parameters = self.config.rope_parameters[kind]
        values = frequencies(self.config, parameters, self.heads.size, where, kind)
        return Rotary(self.layers.graph, f"rotary.{kind}", *values)

    def build(self) -> Built:
        config, layers = self.config, self.layers
        size = config.hidden_size
        norm = {"size": size, "eps": config.norm_eps, "bias": config.norm_bias}
        x = layers.embedding("embeddings.tok_embeddings", config.vocab_size, size)
        x = normed = layers.layer_norm(x, "embeddings.norm", **norm)  # layer 0 has no attn_norm
        for n, kind in enumerate(self.kinds):
            name = f"layers.{n}"
            mixed = self.attend(normed, f"{name}.attn", kind)
            normed, x = layers.add_layer_norm(mixed, x, f"{name}.mlp_norm", **norm)
            is_last = n + 1 == len(self.kinds)
            following = "final_norm" if is_last else f"layers.{n + 1}.attn_norm"
            fed = self.feed(normed, f"{name}.mlp")
            normed, x = layers.add_layer_norm(fed, x, following, **norm)
        return Built(normed, size, self.attention.masked_up_to)

    def attend(self, x: str, name: str, kind: str) -> str:
        size, bias, rotary = (
            self.config.hidden_size,
            self.config.attention_bias,
            self.rotaries[kind],
        )
        query, key, value = self.layers.packed(x, f"{name}.Wqkv", size, [size] * 3, bias)
        query, key = rotary.rotate(query), rotary.rotate(key)
        if kind == _LOCAL:
            mixed = self.attention.windowed(query, key, value, self.config.sliding_window)
        else:
            mixed = self.attention.bidirectional(query, key, value)
        return self.layers.linear(mixed, f"{name}.Wo", size, size, bias)

    def feed(self, x: str, name: str) -> str:
        config, layers = self.config, self.layers
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        gate, up = layers.packed(x, f"{name}.Wi", size, [inner] * 2, bias)
        gated = layers.gated(up, gate, config.hidden_activation)
        return layers.linear(gated, f"{name}.Wo", inner, size, bias)


def _kinds(config: Any) -> list[str]:
    """Each layer's kind of attention. StartupError for what the parts cannot express."""
    kinds = list(config.layer_types)
    if len(kinds) != config.num_hidden_layers or not set(kinds) <= {_LOCAL, _GLOBAL}:
        raise refused(
            f"config.json: layer_types = {kinds!r}; accepted: {_LOCAL} or {_GLOBAL}"
            f" for each of {config.num_hidden_layers} layers"
        )
    if _LOCAL in kinds and config.sliding_window < 1:
        raise refused(
            f"config.json: local_attention = {config.local_attention!r}; accepted: 2 or more"
        )
    return kinds


_READ = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "norm_eps",
    "norm_bias",
    "attention_bias",
    "mlp_bias",
    "layer_types",
    "global_attn_every_n_layers",
    "local_attention",
    "sliding_window",
    "rope_parameters",
    "rope_scaling",
    "global_rope_theta",
    "local_rope_theta",
)
# For heads, for training, and for kernels that transformers no longer has.
_WITHOUT_EFFECT = (
    "classifier_activation",
    "classifier_bias",
    "classifier_pooling",
    "decoder_bias",
    "deterministic_flash_attn",
    "embedding_dropout",
    "initializer_cutoff_factor",
    "mlp_dropout",
    "reference_compile",
    "repad_logits_with_grad",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "layer_norm_eps",  # in the hub's files beside norm_eps; only norm_eps is read
)

FAMILIES = {
    "modernbert": Family(
        keys={
            **dict.fromkeys((*_READ, *_WITHOUT_EFFECT, "pad_token_id")),
            "hidden_activation": tuple(ACTIVATIONS),
            "position_embedding_type": ("absolute",),  # in the hub's files; nothing reads it
        },
        build=_build,
        prefixes=("model.",),
        ignored=(r"(head|decoder|classifier)\..*", r".*rotary_emb\.inv_freq"),
    )
}
