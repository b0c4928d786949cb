"""jina_embeddings_v3: XLM-RoBERTa with rotary positions; transformers' files.

Sturua et al., https://arxiv.org/abs/2409.10173. The hub's own files name code and hold an adapter
for each task; export.families.jina_v3_adapters turns them into transformers' files for one task.
"""

from __future__ import annotations

from typing import Any

from export.families.family import Built, Family
from export.families.layers import ACTIVATIONS, Layers
from export.families.rotary_encoder import Architecture, Names, build, transformers_names

_HUB_NAMES = Names(
    norm="emb_ln",
    layers="encoder.layers",
    projections=("mixer.Wqkv",),
    output="mixer.out_proj",
    attention_norm="norm1",
    up=("mlp.fc1",),
    down="mlp.fc2",
    feed_norm="norm2",
)
_ARCHITECTURE = Architecture(
    names=(_HUB_NAMES, transformers_names("mlp.fc1", down="mlp.fc2")),
    gated=False,
    attention_bias=True,
    up_bias=True,
    down_bias=True,
)


def _build(config: Any, layers: Layers) -> Built:
    return build(config, layers, _ARCHITECTURE)


_READ = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "type_vocab_size",
    "layer_norm_eps",
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "pad_token_id",
)
FAMILIES = {
    "jina_embeddings_v3": Family(
        keys={
            **dict.fromkeys((*_READ, "matryoshka_dimensions")),
            "hidden_act": tuple(ACTIVATIONS),
        },
        build=_build,
        prefixes=("roberta.",),
        ignored=(r"(lm_head|pooler|classifier|qa_outputs)\..*", r".*rotary_emb\.inv_freq"),
    )
}
