"""MPNet: BERT's layers, positions counted from the ids, and one bias by distance for all layers."""

from __future__ import annotations

from typing import Any

from export.families import positions, relative
from export.families.family import Built, Family, Keys
from export.families.layers import ACTIVATIONS, Layers
from export.families.post_norm import Names, PostNorm, Sizes

_NAMES = Names(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    mixed="attention.attn.o",
    mixed_norm="attention.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    down_norm="output.LayerNorm",
)

# Constants of transformers' MPNetModel, whatever config.json says.
_PAD = 1
_BUCKETS = 32
_LONGEST_DISTANCE = 128


def _build(config: Any, layers: Layers) -> Built:
    graph, hidden, eps = layers.graph, config.hidden_size, config.layer_norm_eps
    name = "embeddings.position_embeddings.weight"
    table = layers.weights.take(name, (config.max_position_embeddings, hidden))
    places = positions.by_ids(graph, graph.constant(name, table), _PAD)
    x = layers.embedding("embeddings.word_embeddings", config.vocab_size, hidden)
    x, _ = layers.add_layer_norm(x, places, "embeddings.LayerNorm", hidden, eps)
    heads = config.num_attention_heads
    sizes = Sizes(
        hidden=hidden,
        heads=heads,
        inner=config.intermediate_size,
        activation=config.hidden_act,
        eps=eps,
    )
    by_bucket = layers.weights.take("encoder.relative_attention_bias.weight", (_BUCKETS, heads))
    bias = relative.bias(graph, "position_bias", by_bucket, _LONGEST_DISTANCE)
    parts = PostNorm(layers, _NAMES, sizes)
    for n in range(config.num_hidden_layers):
        x = parts.layer(x, f"encoder.layer.{n}", bias)
    usable = config.max_position_embeddings - _PAD - 1
    return Built(x, hidden, parts.attention.masked_up_to, usable)


_READ = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "layer_norm_eps",
)
_KEYS: Keys = {
    **dict.fromkeys(_READ),
    "hidden_act": tuple(ACTIVATIONS),
    # transformers' model reads none of them: padding is id 1, and there are no token types.
    **dict.fromkeys(("pad_token_id", "type_vocab_size")),
    "relative_attention_num_buckets": (_BUCKETS,),
    "position_embedding_type": ("absolute", None),
}
_IGNORED = (
    r"pooler\..*",  # unused: pooling is a module of its own
    r"lm_head\..*",  # the head of pre-training
    r"(qa_outputs|classifier)\..*",  # heads of fine-tuning
    r"embeddings\.position_ids",  # a buffer: 0, 1, 2, ...
)

FAMILIES = {"mpnet": Family(_KEYS, _build, prefixes=("mpnet.",), ignored=_IGNORED)}
