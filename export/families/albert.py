"""ALBERT: a small embedding, and BERT's layers in groups that share their weights."""

from __future__ import annotations

from typing import Any

from export.families import bert
from export.families.family import Built, Family, Keys
from export.families.layers import Layers
from export.families.post_norm import Names, PostNorm, Sizes

_NAMES = Names(
    query="attention.query",
    key="attention.key",
    value="attention.value",
    mixed="attention.dense",
    mixed_norm="attention.LayerNorm",
    up="ffn",
    down="ffn_output",
    down_norm="full_layer_layer_norm",
)


def _build(config: Any, layers: Layers) -> Built:
    hidden, count = config.hidden_size, config.num_hidden_layers
    sizes = Sizes(
        hidden=hidden,
        heads=config.num_attention_heads,
        inner=config.intermediate_size,
        activation=config.hidden_act,
        eps=config.layer_norm_eps,
    )
    x = bert.embedded(config, layers, bert.places(config, layers))
    mapping = "encoder.embedding_hidden_mapping_in"
    x = layers.linear(x, mapping, config.embedding_size, hidden, bias=True)
    parts = PostNorm(layers, _NAMES, sizes)
    for n in range(count):
        # transformers' order of operations, for layer counts that the groups do not divide.
        group = int(n / (count / config.num_hidden_groups))
        for inner in range(config.inner_group_num):
            x = parts.layer(x, f"encoder.albert_layer_groups.{group}.albert_layers.{inner}")
    return Built(x, hidden, parts.attention.masked_up_to, config.max_position_embeddings)


_KEYS: Keys = {
    **bert.KEYS,
    **dict.fromkeys(("embedding_size", "num_hidden_groups", "inner_group_num")),
    # In the original's files; transformers' model reads none of them.
    **dict.fromkeys(("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks")),
    "layers_to_keep": None,
}
_IGNORED = (
    r"pooler\..*",  # unused: pooling is a module of its own
    r"(predictions|sop_classifier)\..*",  # heads of pre-training
    r"(qa_outputs|classifier)\..*",  # heads of fine-tuning
    r"embeddings\.(position_ids|token_type_ids)",  # buffers: 0, 1, 2, ... or zeros
)

FAMILIES = {"albert": Family(_KEYS, _build, prefixes=("albert.",), ignored=_IGNORED)}
