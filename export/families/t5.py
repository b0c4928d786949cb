"""The encoders of T5, mT5 and umT5: pre-norm, no positions but a bias by distance, no scale."""

from __future__ import annotations

from typing import Any

from export.families import relative
from export.families.attention import Attention, Heads
from export.families.family import Built, Family, Keys
from export.families.layers import ACTIVATIONS, Layers
from export.files import refused

_EMBEDDING = "encoder.embed_tokens"
_SHARED = "shared"


def _build(config: Any, layers: Layers) -> Built:
    return _Encoder(config, layers).build()


class _Encoder:
    def __init__(self, config: Any, layers: Layers) -> None:
        if config.dense_act_fn not in ACTIVATIONS:
            raise refused(
                f"config.json: feed_forward_proj = {config.feed_forward_proj!r} is not supported; "
                f"accepted: one of {', '.join(ACTIVATIONS)}, or gated- before one of them"
            )
        self.config = config
        self.layers = layers
        self.heads = Heads(config.num_heads, config.d_kv, config.num_heads)
        self.attention = Attention(layers.graph, self.heads, 1.0)

    def build(self) -> Built:
        config, layers = self.config, self.layers
        size, eps, count = config.d_model, config.layer_norm_epsilon, config.num_layers
        # Where a file has both, transformers takes the encoder's own.
        table = _EMBEDDING if f"{_EMBEDDING}.weight" in layers.weights else _SHARED
        x = layers.embedding(table, config.vocab_size, size)
        normed = layers.rms_norm(x, f"{_layer(0, 0)}.layer_norm", size, eps)
        for n in range(count):
            mixed = self.attend(normed, n)
            normed, x = layers.add_rms_norm(mixed, x, f"{_layer(n, 1)}.layer_norm", size, eps)
            fed = self.feed(normed, f"{_layer(n, 1)}.DenseReluDense")
            is_last = n + 1 == count
            following = "encoder.final_layer_norm" if is_last else f"{_layer(n + 1, 0)}.layer_norm"
            normed, x = layers.add_rms_norm(fed, x, following, size, eps)
        return Built(normed, size, self.attention.masked_up_to)

    def attend(self, x: str, n: int) -> str:
        name, hidden, width = f"{_layer(n, 0)}.SelfAttention", self.config.d_model, self.heads.width
        query, key, value = (
            self.layers.linear(x, f"{name}.{part}", hidden, width) for part in ("q", "k", "v")
        )
        mixed = self.attention.bidirectional(query, key, value, self.bias(n))
        return self.layers.linear(mixed, f"{name}.o", width, hidden)

    def bias(self, n: int) -> str:
        """Layer n's bias: umT5 has one per layer, the others use the first layer's for all."""
        first = n if self.config.model_type == "umt5" else 0
        name = f"{_layer(first, 0)}.SelfAttention.relative_attention_bias"
        if not self.layers.graph.has(name):
            buckets = self.config.relative_attention_num_buckets
            table = self.layers.weights.take(f"{name}.weight", (buckets, self.heads.count))
            longest = self.config.relative_attention_max_distance
            relative.bias(self.layers.graph, name, table, longest)
        return name

    def feed(self, x: str, name: str) -> str:
        config, layers = self.config, self.layers
        hidden, inner = config.d_model, config.d_ff
        if config.is_gated_act:
            gate = layers.linear(x, f"{name}.wi_0", hidden, inner)
            up = layers.linear(x, f"{name}.wi_1", hidden, inner)
            x = layers.gated(up, gate, config.dense_act_fn)
        else:
            x = layers.activate(layers.linear(x, f"{name}.wi", hidden, inner), config.dense_act_fn)
        return layers.linear(x, f"{name}.wo", inner, hidden)


def _layer(n: int, part: int) -> str:
    return f"encoder.block.{n}.layer.{part}"


_READ = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "layer_norm_epsilon",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "feed_forward_proj",
    # Parts of feed_forward_proj, as transformers saves them; it reads them if they are there.
    "dense_act_fn",
    "is_gated_act",
)
_KEYS: Keys = {
    **dict.fromkeys(_READ),
    # Whatever it says, only the encoder runs.
    "is_encoder_decoder": (True, False),
    # For the decoder and training.
    **dict.fromkeys(("num_decoder_layers", "scale_decoder_outputs", "dropout_rate")),
    # From the original's training; transformers' model does not read it.
    "n_positions": None,
    # umT5's; transformers' model does not read it.
    "scalable_attention": None,
    "pad_token_id": None,  # names a token
}
_IGNORED = (
    r"decoder\..*",  # only the encoder runs
    r"lm_head\.weight",  # the decoder's
    r"(classification_head|classifier|qa_outputs)\..*",  # heads of fine-tuning
    r"shared\.weight",  # see _EMBEDDING
)
_FAMILY = Family(_KEYS, _build, prefixes=("transformer.",), ignored=_IGNORED)

FAMILIES = {"t5": _FAMILY, "mt5": _FAMILY, "umt5": _FAMILY}
