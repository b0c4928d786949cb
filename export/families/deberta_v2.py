"""DeBERTa v2 and v3: attention by content and by distance, https://arxiv.org/abs/2006.03654.

Query and key are each multiplied by learned embeddings of distances ("c2p", "p2c"). The products
are a bias of MultiHeadAttention.
"""

from __future__ import annotations

from typing import Any

from export.families.distances import Distances
from export.families.family import Built, Family, Keys
from export.families.layers import ACTIVATIONS, Layers
from export.families.post_norm import Names, PostNorm, Sizes
from export.files import refused

_NAMES = Names(
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
    mixed="attention.output.dense",
    mixed_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    down_norm="output.LayerNorm",
)
_WORDS = "embeddings.word_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"


def _build(config: Any, layers: Layers) -> Built:
    _check(config)
    hidden, eps = config.hidden_size, config.layer_norm_eps
    words = layers.weights.take(_WORDS, (config.vocab_size, hidden))
    if config.type_vocab_size:  # every token of a text has type 0
        words = words + layers.weights.take(_TYPES, (config.type_vocab_size, hidden))[0]
    x = layers.graph.node("Gather", [layers.graph.constant(_WORDS, words), "input_ids"])
    x = layers.layer_norm(x, "embeddings.LayerNorm", hidden, eps)
    parts = _Layer(config, layers)
    for n in range(config.num_hidden_layers):
        x = parts.layer(x, f"encoder.layer.{n}")
    return Built(x, hidden, parts.attention.masked_up_to)


class _Layer(PostNorm):
    """A layer whose attention has a bias of its own, from query, key and their distance."""

    def __init__(self, config: Any, layers: Layers) -> None:
        sizes = Sizes(
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            inner=config.intermediate_size,
            activation=config.hidden_act,
            eps=config.layer_norm_eps,
            head=getattr(config, "attention_head_size", None),
        )
        size = sizes.head or sizes.hidden // sizes.heads
        self.kinds = _kinds(config)
        self.is_shared = getattr(config, "share_att_key", False)
        # Scores are the sum of a product by content and one or two by distance.
        super().__init__(layers, _NAMES, sizes, (size * (1 + len(self.kinds))) ** -0.5)
        self.distances = Distances(layers, *_span(config))
        self.embeddings = self._embeddings(config)

    def attend(self, x: str, name: str, bias: str) -> str:
        query, key, value = (self._linear(x, f"{name}.{part}") for part in self.names.projections)
        terms = [bias] if bias else []
        if "c2p" in self.kinds:
            terms.append(self._meet(query, f"{name}.{self._projection('key')}", 1))
        if "p2c" in self.kinds:
            met = self._meet(key, f"{name}.{self._projection('query')}", -1)
            terms.append(self.layers.graph.node("Transpose", [met], perm=[0, 1, 3, 2]))
        bias = terms[0] if len(terms) == 1 else self.layers.graph.node("Add", terms)
        return self.attention.bidirectional(query, key, value, bias)

    def _meet(self, x: str, projection: str, sign: int) -> str:
        """Multiply x (b, t, width) by the embeddings of distances: see Distances.product."""
        graph, scale = self.layers.graph, self.layers.graph.number(self.attention.scale)
        # Nothing here depends on a text: onnxruntime computes it once, when it loads the graph.
        rows = graph.node("Mul", [self._linear(self.embeddings, projection), scale])
        return self.distances.product(x, self.heads, rows, sign)

    def _linear(self, x: str, name: str) -> str:
        return self.layers.linear(x, name, self.sizes.hidden, self.heads.width, bias=True)

    def _projection(self, part: str) -> str:
        return (
            f"attention.self.{part}_proj" if self.is_shared else f"attention.self.pos_{part}_proj"
        )

    def _embeddings(self, config: Any) -> str:
        """The embeddings of distances (2 * span, hidden)."""
        hidden, name = self.sizes.hidden, "encoder.rel_embeddings.weight"
        table = self.layers.weights.take(name, (2 * self.distances.span, hidden))
        rows = self.layers.graph.constant(name, table)
        if "layer_norm" not in _norms(config):
            return rows
        return self.layers.layer_norm(rows, "encoder.LayerNorm", hidden, self.sizes.eps)


def _kinds(config: Any) -> list[str]:
    return [kind for kind in ("c2p", "p2c") if kind in (config.pos_att_type or [])]


def _norms(config: Any) -> list[str]:
    return [norm.strip() for norm in getattr(config, "norm_rel_ebd", "none").lower().split("|")]


def _span(config: Any) -> tuple[int, int]:
    """The number of buckets (0: one per distance), and the longest distance."""
    longest, buckets = config.max_relative_positions, getattr(config, "position_buckets", -1)
    if longest < 1:
        longest = config.max_position_embeddings
    if buckets > 0 and longest - 1 <= buckets // 2:
        raise refused(
            f"config.json: position_buckets = {buckets}, but the longest distance is {longest}; "
            "it must be more than half of the buckets plus 1"
        )
    return max(buckets, 0), longest


# transformers' own defaults for these keys are not implemented, either.
_ONLY = {"relative_attention": True, "position_biased_input": False}


def _check(config: Any) -> None:
    for key, accepted in _ONLY.items():
        if getattr(config, key) is not accepted:
            raise refused(
                f"config.json: {key} = {getattr(config, key)!r} is not supported; accepted: "
                f"{accepted!r}"
            )
    if not _kinds(config):
        raise refused(
            f"config.json: pos_att_type = {config.pos_att_type!r}; c2p, p2c or both are accepted"
        )


_READ = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "attention_head_size",
    "max_position_embeddings",
    "max_relative_positions",
    "position_buckets",
    "norm_rel_ebd",
    "share_att_key",
    "pos_att_type",
    "type_vocab_size",
    "layer_norm_eps",
)
_KEYS: Keys = {
    **dict.fromkeys(_READ),
    **{key: (accepted,) for key, accepted in _ONLY.items()},
    "hidden_act": tuple(ACTIVATIONS),
    # A convolution beside the first layer (v2-xlarge): not implemented.
    "conv_kernel_size": (0,),
    "conv_act": None,
    "pad_token_id": None,  # names a token
    # For heads.
    **dict.fromkeys(("legacy", "pooler_dropout", "pooler_hidden_act", "pooler_hidden_size")),
}
_IGNORED = (
    r"(cls|lm_predictions|mask_predictions)\..*",  # heads of pre-training
    r"(pooler|classifier|qa_outputs)\..*",  # heads of fine-tuning
    r"embeddings\.position_embeddings\.weight",  # position_biased_input is false
    r"embeddings\.position_ids",  # a buffer: 0, 1, 2, ...
)

FAMILIES = {"deberta-v2": Family(_KEYS, _build, prefixes=("deberta.",), ignored=_IGNORED)}
