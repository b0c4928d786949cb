"""BERT and models built like it: RoBERTa, XLM-R, CamemBERT, ELECTRA, DistilBERT, ERNIE, data2vec.

Learned positions, and a norm after each residual sum. The models differ in where positions start,
in token types, in a smaller embedding (ELECTRA), and in names.
"""

from __future__ import annotations

from typing import Any

from embedserve.arrays.types import Floats
from export.families import positions
from export.families.family import Built, Family, Keys
from export.families.layers import ACTIVATIONS, Layers
from export.families.post_norm import BERT, Names, PostNorm, Sizes
from export.files import refused

_DISTILBERT = Names(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    mixed="attention.out_lin",
    mixed_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    down_norm="output_layer_norm",
)
# transformers' own constant for DistilBERT; its config.json has none.
_DISTILBERT_EPS = 1e-12


def _build_by_place(config: Any, layers: Layers) -> Built:
    return _build(config, layers, places(config, layers), config.max_position_embeddings)


def _build_by_ids(config: Any, layers: Layers) -> Built:
    pad = config.pad_token_id
    if not isinstance(pad, int):
        raise refused(f"config.json: pad_token_id = {pad!r}; positions are counted from it")
    table = layers.graph.constant(_POSITIONS, layers.weights.take(_POSITIONS, _table(config)))
    usable = config.max_position_embeddings - pad - 1
    return _build(config, layers, positions.by_ids(layers.graph, table, pad), usable)


def _build(config: Any, layers: Layers, placed: str, usable: int) -> Built:
    size, hidden = _embedding_size(config), config.hidden_size
    sizes = Sizes(
        hidden=hidden,
        heads=config.num_attention_heads,
        inner=config.intermediate_size,
        activation=config.hidden_act,
        eps=config.layer_norm_eps,
    )
    x = embedded(config, layers, placed)
    if size != hidden:
        x = layers.linear(x, "embeddings_project", size, hidden, bias=True)
    parts = PostNorm(layers, BERT, sizes)
    for n in range(config.num_hidden_layers):
        x = parts.layer(x, f"encoder.layer.{n}")
    return Built(x, hidden, parts.attention.masked_up_to, usable)


def _build_distilbert(config: Any, layers: Layers) -> Built:
    hidden, eps = config.dim, _DISTILBERT_EPS
    sizes = Sizes(hidden, config.n_heads, config.hidden_dim, config.activation, eps)
    x = layers.embedding("embeddings.word_embeddings", config.vocab_size, hidden)
    x, _ = layers.add_layer_norm(x, places(config, layers), "embeddings.LayerNorm", hidden, eps)
    parts = PostNorm(layers, _DISTILBERT, sizes)
    for n in range(config.n_layers):
        x = parts.layer(x, f"transformer.layer.{n}")
    return Built(x, hidden, parts.attention.masked_up_to, config.max_position_embeddings)


# -- embeddings --------------------------------------------------------------------------------


def embedded(config: Any, layers: Layers, placed: str) -> str:
    """The sum of words, token type 0 and positions `placed`, normalized: (b, t, embedding size)."""
    size, eps = _embedding_size(config), config.layer_norm_eps
    x = layers.graph.node("Gather", [_words(config, layers), "input_ids"])
    return layers.add_layer_norm(x, placed, "embeddings.LayerNorm", size, eps)[0]


_POSITIONS = "embeddings.position_embeddings.weight"


def _embedding_size(config: Any) -> int:
    return int(getattr(config, "embedding_size", config.hidden_size))


def _table(config: Any) -> tuple[int, int]:
    return config.max_position_embeddings, _embedding_size(config)


def places(config: Any, layers: Layers) -> str:
    """Learned positions, one for each column of the batch: (t, embedding size)."""
    table: Floats = layers.weights.take(_POSITIONS, _table(config))
    if getattr(config, "use_task_id", False):  # ERNIE: task 0, as for any text without one
        tasks = (config.task_type_vocab_size, config.hidden_size)
        table = table + layers.weights.take("embeddings.task_type_embeddings.weight", tasks)[0]
    return positions.by_place(layers.graph, layers.graph.constant(_POSITIONS, table))


def _words(config: Any, layers: Layers) -> str:
    """The embeddings of words plus that of token type 0, which every token of a text has."""
    size, prefix = _embedding_size(config), "embeddings"
    words = layers.weights.take(f"{prefix}.word_embeddings.weight", (config.vocab_size, size))
    types = (config.type_vocab_size, size)
    first = layers.weights.take(f"{prefix}.token_type_embeddings.weight", types)[0]
    return layers.graph.constant("embeddings.word_embeddings.weight", words + first)


# -- config.json, tensors ----------------------------------------------------------------------

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)
KEYS: Keys = {
    **dict.fromkeys(_SIZES),
    "hidden_act": tuple(ACTIVATIONS),
    # transformers 5 ignores other values, and their tensors.
    "position_embedding_type": ("absolute", None),
    # Asks for another form of output.
    "use_return_dict": None,
}
# For the pooler and training, in LaBSE's and mBERT's files. No hidden state depends on them.
_UNUSED = (
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
)
_ELECTRA_KEYS: Keys = {
    **KEYS,
    "embedding_size": None,
    # Of the other model, in pre-training.
    "generator_size": None,
    # For a classification head.
    **dict.fromkeys(
        (
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_last_dropout",
            "summary_first_dropout",
        )
    ),
}
_DISTILBERT_KEYS: Keys = {
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "pad_token_id")),
    **dict.fromkeys(("dim", "hidden_dim", "n_heads", "n_layers")),
    "activation": tuple(ACTIVATIONS),
    # How positions were initialized; the trained table is in the file.
    "sinusoidal_pos_embds": None,
    # For heads and training.
    **dict.fromkeys(("qa_dropout", "seq_classif_dropout", "tie_weights_")),
}

# Tensors that no hidden state depends on.
_IGNORED = (
    r"pooler\..*",  # unused: pooling is a module of its own
    r"cls\..*",  # BERT's heads of pre-training
    r"lm_head\..*",  # RoBERTa's head of pre-training
    r"(qa_outputs|classifier|pre_classifier)\..*",  # heads of fine-tuning
    r"vocab_(transform|layer_norm|projector)\..*",  # DistilBERT's head of pre-training
    r"(generator|discriminator)_(predictions|lm_head)\..*",  # ELECTRA's
    r"embeddings\.(position_ids|token_type_ids)",  # buffers: 0, 1, 2, ... or zeros
)


def _family(prefix: str, build: Any, keys: Keys) -> Family:
    return Family(keys, build, prefixes=(f"{prefix}.",), ignored=_IGNORED)


_UNUSED_KEYS: Keys = dict.fromkeys(_UNUSED)

FAMILIES = {
    "bert": _family("bert", _build_by_place, {**KEYS, **_UNUSED_KEYS}),
    "electra": _family("electra", _build_by_place, _ELECTRA_KEYS),
    "ernie": _family(
        "ernie",
        _build_by_place,
        {**KEYS, **_UNUSED_KEYS, "use_task_id": None, "task_type_vocab_size": None},
    ),
    "distilbert": _family("distilbert", _build_distilbert, _DISTILBERT_KEYS),
    "roberta": _family("roberta", _build_by_ids, KEYS),
    "xlm-roberta": _family("roberta", _build_by_ids, KEYS),
    "camembert": _family("roberta", _build_by_ids, KEYS),
    "data2vec-text": _family("data2vec_text", _build_by_ids, KEYS),
}
