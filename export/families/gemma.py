"""Gemma 1, 2 and 3 (text): decoders, and EmbeddingGemma, which is a bidirectional Gemma 3.

Where transformers 5.24 computes something else than the files seem to say:

- Gemma 2 runs eagerly, because it bounds its scores (attn_logit_softcapping); Gemma 3 never does.
  onnxruntime's operator bounds them, too, but holds all of them at once: 1 GiB at 8,192 tokens and
  4 heads. It takes four times as long as without a bound.
- use_bidirectional_attention is Gemma 3's. In Gemma 1 it makes a text alone bidirectional, and in
  a padded batch causal; in Gemma 2 it does nothing.
- With it a sliding_window of w reaches w // 2 to either side. A loaded configuration has
  w // 2 + 1, and saves w again (w - 1 for an odd w, which is the same window). transformers 4.57
  saved w // 2 + 1: models that it saved have half the window.
"""

from __future__ import annotations

from export.families.decoder import family
from export.families.decoder_graph import Variant
from export.families.family import Keys
from export.families.layers import ACTIVATIONS

_GEMMA_KEYS: Keys = {
    "attention_bias": None,
    # The layout of a cache of generated tokens.
    "cache_implementation": None,
}
_WINDOW_KEYS: Keys = {
    "hidden_activation": tuple(ACTIVATIONS),
    "query_pre_attn_scalar": None,
    "layer_types": None,
    "sliding_window": None,
    # For the head that gives logits.
    "final_logit_softcapping": None,
}

FAMILIES = {
    "gemma": family(
        Variant(norm_offset=1.0, scaled_embeddings=True),
        {
            **_GEMMA_KEYS,
            "hidden_act": tuple(ACTIVATIONS),
            # No longer read. hidden_act is, and its "gelu" means the tanh approximation.
            "hidden_activation": (None, "gelu_pytorch_tanh"),
            "use_bidirectional_attention": (None, False),
        },
    ),
    "gemma2": family(
        Variant(
            norm_offset=1.0,
            scaled_embeddings=True,
            outer_norms=True,
            query_scalar=True,
            softcap=True,
            windows="layer_types",
            activation="hidden_activation",
        ),
        {
            **_GEMMA_KEYS,
            **_WINDOW_KEYS,
            "attn_logit_softcapping": None,
            "use_bidirectional_attention": (None, False),
            # Not read by transformers; Google's files have them beside the keys above.
            "hidden_act": ("gelu_pytorch_tanh",),
            "sliding_window_size": None,
        },
    ),
    "gemma3_text": family(
        Variant(
            norm_offset=1.0,
            scaled_embeddings=True,
            outer_norms=True,
            query_scalar=True,
            head_norms=True,
            windows="layer_types",
            activation="hidden_activation",
        ),
        {
            **_GEMMA_KEYS,
            **_WINDOW_KEYS,
            "attn_logit_softcapping": (None,),
            "use_bidirectional_attention": None,
            "rope_local_base_freq": None,
            "sliding_window_pattern": None,
            "_sliding_window_pattern": None,
        },
    ),
}
