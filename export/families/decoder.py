"""Decoders like Llama (Mistral, Qwen), and EuroBERT, an encoder of the same parts.

Causal, or bidirectional if config.json says is_causal = false, which today's transformers supports
for all of them. Positions count from the first token of a row: padding is to the right.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from export.families.decoder_graph import Decoder, Variant
from export.families.family import Built, Family, Keys
from export.families.layers import ACTIVATIONS, Layers

# Keys of all decoders of this shape, Gemma's too.
KEYS: Keys = {
    **dict.fromkeys(
        (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "rms_norm_eps",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
        )
    ),
    # Its row is for padding, which no token sees: no hidden state depends on it.
    "pad_token_id": None,
    # Not null: transformers 5.24 is then causal for a text alone, but not for a padded batch.
    "is_causal": (True, False),
}
# A head's weights, and frequencies that transformers before 4.32 saved although it computes them.
IGNORED = (r"lm_head\.weight", r".*rotary_emb\.inv_freq")
PREFIXES = ("model.",)

_ACTIVATION: Keys = {"hidden_act": tuple(ACTIVATIONS)}
# transformers' configurations read these and put the result into layer_types.
_LAYER_TYPES: Keys = dict.fromkeys(
    ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
)
_BIASES: Keys = dict.fromkeys(("attention_bias", "mlp_bias"))
# Splits a product, which stays the same; transformers' model ignores it.
_SLICES: Keys = {"pretraining_tp": None}


def family(variant: Variant, keys: Keys, auto_map: bool = False) -> Family:
    """Return the family of `variant`, whose files have `keys` beside those of all decoders."""
    build = partial(_build, variant=variant)
    return Family({**KEYS, **keys}, build, PREFIXES, IGNORED, auto_map)


def _build(config: Any, layers: Layers, variant: Variant) -> Built:
    return Decoder(config, layers, variant).build()


FAMILIES = {
    "llama": family(
        Variant(),
        {
            **_ACTIVATION,
            **_BIASES,
            **_SLICES,
            "sliding_window": (None,),  # transformers' Llama has none
            "rope_interleaved": (False,),  # true in Meta's own files, whose weights are permuted
        },
    ),
    "mistral": family(Variant(windows="all"), {**_ACTIVATION, "sliding_window": None}),
    "ministral": family(
        Variant(windows="layer_types"),
        {**_ACTIVATION, "sliding_window": None, "layer_types": None},
    ),
    "ministral3": family(
        Variant(windows="all", scaled_queries=True), {**_ACTIVATION, "sliding_window": None}
    ),
    "qwen2": family(
        Variant(projection_bias=True, windows="layer_types"), {**_ACTIVATION, **_LAYER_TYPES}
    ),
    "qwen3": family(
        Variant(head_norms=True, windows="layer_types"),
        {**_ACTIVATION, **_LAYER_TYPES, "attention_bias": None},
    ),
    "eurobert": family(
        Variant(bidirectional=True),
        {
            **_ACTIVATION,
            **_BIASES,
            **_SLICES,
            # With true, transformers 5.24 is causal for a text alone.
            "is_causal": (False,),
            # The tokenizer's files say which ids a text has.
            "bos_token": None,
            "eos_token": None,
            "pad_token": None,
            "mask_token": None,
            # For a head.
            "clf_pooling": None,
            "classifier_pooling": None,
        },
        auto_map=True,
    ),
}
