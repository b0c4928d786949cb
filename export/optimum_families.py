"""The families whose graphs optimum makes: the keys of config.json that its transformers knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from export.families.family import Keys


@dataclass(frozen=True, slots=True)
class OptimumFamily:
    """One model_type: keys of config.json, and patterns of tensors no hidden state depends on."""

    keys: Keys
    ignored: tuple[str, ...] = ()


_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)
_HEADS = (
    r"(.*\.)?pooler\..*",
    r"cls\..*",
    r"(lm|qa|generator|discriminator)_\w+\..*",
    r"lm_head\..*",
    r"classifier\..*",
    r"vocab_(transform|layer_norm|projector)\..*",
    r"predictions\..*",
    r"mask_predictions\..*",
    r"(.*\.)?embeddings\.position_ids",  # a range, saved by transformers before 4.31
)
# The activations that all of these take from one table.
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")
_ABSOLUTE: tuple[object, ...] = ("absolute", None)


def _family(*more: str, **accepted: tuple[object, ...]) -> OptimumFamily:
    keys: dict[str, tuple[object, ...] | None] = {
        **dict.fromkeys((*_SIZES, *more)),
        "hidden_act": _ACTIVATIONS,
        "position_embedding_type": _ABSOLUTE,
        **accepted,
    }
    return OptimumFamily(keys, _HEADS)


_BERT = _family(use_return_dict=(True, False))

OPTIMUM: Mapping[str, OptimumFamily] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _family(
        "embedding_size",
        # Of the language model's heads.
        "summary_activation",
        "summary_last_dropout",
        "summary_type",
        "summary_use_proj",
        "generator_size",
    ),
    "distilbert": _family(
        "dim",
        "n_layers",
        "n_heads",
        "hidden_dim",
        "qa_dropout",
        "seq_classif_dropout",
        activation=_ACTIVATIONS,
        sinusoidal_pos_embds=(False, None),
        tie_weights_=(True, False),
    ),
    "albert": _family(
        "embedding_size",
        "num_hidden_groups",
        "inner_group_num",
        "net_structure_type",
        "down_scale_factor",
        "gap_size",
        "num_memory_blocks",
    ),
    "mpnet": _family("relative_attention_num_buckets"),
    "deberta-v2": _family(
        "relative_attention",
        "position_buckets",
        "norm_rel_ebd",
        "share_att_key",
        "pos_att_type",
        "max_relative_positions",
        "position_biased_input",
        "conv_act",
        "conv_kernel_size",
        "pooler_dropout",
        "pooler_hidden_act",
        "pooler_hidden_size",
        "attention_head_size",
        "legacy",
    ),
}
