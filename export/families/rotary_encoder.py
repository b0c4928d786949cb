"""BERT with rotary positions, normalized after each sum: nomic_bert, gte and jina_embeddings_v3.

Token types are not an input: they are 0 in every single text, so the embedding of type 0 is added
to the words'. Rotary positions: Su et al., https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedserve.arrays.types import Floats
from export.families.attention import Attention, Heads
from export.families.family import Built
from export.families.layers import Layers
from export.families.rotary import Rotary, frequencies
from export.files import refused

_WORDS = "embeddings.word_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"


@dataclass(frozen=True, slots=True)
class Names:
    """What a checkpoint calls its tensors, those of a layer below `layers`.N.

    `projections` are query, key and value, or one name for the three joined; `up` is the first
    matrix of the feed-forward part, or up and gate, or one name for the two joined.
    """

    norm: str
    layers: str
    projections: tuple[str, ...]
    output: str
    attention_norm: str
    up: tuple[str, ...]
    down: str
    feed_norm: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a family differs, besides its sizes. `names`: the naming schemes of its checkpoints."""

    names: tuple[Names, ...]
    gated: bool
    attention_bias: bool
    up_bias: bool
    down_bias: bool


def transformers_names(*up: str, down: str) -> Names:
    """The names of transformers' own modules."""
    return Names(
        norm="embeddings.LayerNorm",
        layers="layers",
        projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        output="self_attn.o_proj",
        attention_norm="post_attention_layernorm",
        up=up,
        down=down,
        feed_norm="post_mlp_layernorm",
    )


def build(config: Any, layers: Layers, architecture: Architecture) -> Built:
    """Add the nodes; `config` is transformers' own for nomic_bert, gte or jina_embeddings_v3."""
    return _Encoder(config, layers, architecture).build()


class _Encoder:
    def __init__(self, config: Any, layers: Layers, architecture: Architecture) -> None:
        self.config = config
        self.layers = layers
        self.architecture = architecture
        self.names = self._names()
        count, hidden = config.num_attention_heads, config.hidden_size
        size = getattr(config, "head_dim", None) or hidden // count
        if size % 2 or (hidden % count and not getattr(config, "head_dim", None)):
            raise refused(
                f"config.json: num_attention_heads = {count} of hidden_size = {hidden};"
                " heads of an even size are accepted"
            )
        self.heads = Heads(count, size, count)
        self.attention = Attention(layers.graph, self.heads, size**-0.5)
        values = frequencies(config, config.rope_parameters, size, "config.json: rope_parameters")
        self.rotary = Rotary(layers.graph, "rotary", *values)

    def build(self) -> Built:
        config, layers, names = self.config, self.layers, self.names
        norm = {"size": config.hidden_size, "eps": config.layer_norm_eps}
        x = layers.graph.node("Gather", [self.table(), "input_ids"])
        x = layers.layer_norm(x, names.norm, **norm)
        for n in range(config.num_hidden_layers):
            name = f"{names.layers}.{n}"
            mixed = self.attend(x, name)
            x, _ = layers.add_layer_norm(mixed, x, f"{name}.{names.attention_norm}", **norm)
            x, _ = layers.add_layer_norm(self.feed(x, name), x, f"{name}.{names.feed_norm}", **norm)
        return Built(x, config.hidden_size, self.attention.masked_up_to)

    def table(self) -> str:
        """The embeddings of words, with that of token type 0 added where there are types."""
        config, take = self.config, self.layers.weights.take
        words: Floats = take(_WORDS, (config.vocab_size, config.hidden_size))
        if config.type_vocab_size:
            words = words + take(_TYPES, (config.type_vocab_size, config.hidden_size))[0]
        return self.layers.graph.constant(_WORDS, words)

    def attend(self, x: str, name: str) -> str:
        hidden, width, bias = (
            self.config.hidden_size,
            self.heads.width,
            self.architecture.attention_bias,
        )
        query, key, value = self.project(x, name, self.names.projections, [width] * 3, bias)
        query, key = self.rotary.rotate(query), self.rotary.rotate(key)
        mixed = self.attention.bidirectional(query, key, value)
        return self.layers.linear(mixed, f"{name}.{self.names.output}", width, hidden, bias)

    def feed(self, x: str, name: str) -> str:
        config, names = self.config, self.names
        inner, bias = config.intermediate_size, self.architecture.up_bias
        if self.architecture.gated:
            up, gate = self.project(x, name, names.up, [inner] * 2, bias)
            x = self.layers.gated(up, gate, config.hidden_act)
        else:
            [up] = self.project(x, name, names.up, [inner], bias)
            x = self.layers.activate(up, config.hidden_act)
        down = f"{name}.{names.down}"
        return self.layers.linear(x, down, inner, config.hidden_size, self.architecture.down_bias)

    def project(
        self, x: str, layer: str, names: tuple[str, ...], sizes: list[int], bias: bool
    ) -> list[str]:
        """Products by one matrix per name, or by the one matrix that joins them."""
        hidden = self.config.hidden_size
        if len(names) == 1:
            return self.layers.packed(x, f"{layer}.{names[0]}", hidden, sizes, bias)
        return [
            self.layers.linear(x, f"{layer}.{name}", hidden, size, bias)
            for name, size in zip(names, sizes, strict=True)
        ]

    def _names(self) -> Names:
        """The scheme whose first layer is in the checkpoint; the first scheme if none is."""
        schemes, weights = self.architecture.names, self.layers.weights
        found = (s for s in schemes if f"{s.layers}.0.{s.output}.weight" in weights)
        return next(found, schemes[0])
