"""gte: rotary positions and a gated feed-forward part; the hub's files, and transformers'.

Zhang et al., https://arxiv.org/abs/2407.19669. The hub's files have model_type "new" (or "gte") and
name code of their own, which never runs; transformers calls the architecture gte. `view` translates
their positions into its terms.
"""

from __future__ import annotations

from typing import Any

from export.families.family import Built, Family
from export.families.layers import ACTIVATIONS, Layers
from export.families.rotary_encoder import Architecture, Names, build, transformers_names
from export.files import Json, refused

_HUB_NAMES = Names(
    norm="embeddings.LayerNorm",
    layers="encoder.layer",
    projections=("attention.qkv_proj",),
    output="attention.o_proj",
    attention_norm="attn_ln",
    up=("mlp.up_gate_proj",),
    down="mlp.down_proj",
    feed_norm="mlp_ln",
)
_ARCHITECTURE = Architecture(
    names=(_HUB_NAMES, transformers_names("mlp.up_proj", "mlp.gate_proj", down="mlp.down_proj")),
    gated=True,
    attention_bias=True,
    up_bias=False,
    down_bias=True,
)

# Keys that a file of the hub must have: the hub's code and transformers have different defaults.
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "type_vocab_size",
    "layer_norm_eps",
    "hidden_act",
    "rope_theta",
)
# Keys that only the hub's code reads.
_HUB_ONLY = (
    "pack_qkv",
    "unpad_inputs",
    "use_memory_efficient_attention",
    "logn_attention_scale",
    "logn_attention_clip1",
    "layer_norm_type",
    "position_embedding_type",
)


def view(config: Json) -> Json | None:
    """Return a config.json of model_type gte; None for a file that transformers saved.

    In the hub's code, "ntk" scaling gives frequencies (theta * factor) ** (-2i/d) / factor ** (2/d)
    (d: the size of a head) at every length, the "fixed" scaling of https://kexue.fm/archives/9706.
    transformers calls that linear scaling, with theta * factor and factor ** (2/d).
    """
    rope = config.get("rope_parameters")
    if rope is not None:
        if config["model_type"] != "gte" or config.get("rope_scaling") is not None:
            raise refused(
                f"config.json: rope_parameters = {rope!r} beside rope_scaling or model_type 'new';"
                " only one of the two is accepted"
            )
        return None
    for key in _REQUIRED:
        if config.get(key) is None:
            raise refused(f"config.json: {key} is missing; model_type 'new' has no default")
    hub_only = (*_HUB_ONLY, "auto_map", "rope_theta", "rope_scaling")
    own = {key: value for key, value in config.items() if key not in hub_only}
    return {
        **own,
        "model_type": "gte",
        "architectures": ["GteModel"],
        "rope_parameters": _rope(config, config["rope_theta"]),
    }


def _rope(config: Json, theta: float) -> Json:
    if type(theta) not in (int, float):
        raise refused(f"config.json: rope_theta = {theta!r}; accepted: a number")
    scaling = config.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": float(theta)}
    head = config["hidden_size"] // config["num_attention_heads"]
    if not isinstance(scaling, dict) or set(scaling) != {"type", "factor"}:
        raise refused(
            f"config.json: rope_scaling = {scaling!r}; accepted: null, or a type and a factor"
        )
    kind, factor = scaling["type"], scaling["factor"]
    if kind != "ntk" or type(factor) not in (int, float) or not factor >= 1:
        raise refused(
            f"config.json: rope_scaling = {scaling!r}; accepted: type 'ntk', a factor from 1"
        )
    if factor == 1:
        return {"rope_type": "default", "rope_theta": float(theta)}
    return {
        "rope_type": "linear",
        "rope_theta": float(theta * factor),
        "factor": float(factor ** (2 / head)),
    }


def _build(config: Any, layers: Layers) -> Built:
    return build(config, layers, _ARCHITECTURE)


_FAMILY = Family(
    keys={
        **dict.fromkeys(
            (
                *_REQUIRED,
                "rope_parameters",
                "rope_scaling",
                "pad_token_id",
                # For kernels, and a record of the dimensions that the model was trained for.
                "unpad_inputs",
                "use_memory_efficient_attention",
                "matryoshka_dimensions",
                "auto_map",
            )
        ),
        "hidden_act": tuple(ACTIVATIONS),
        "layer_norm_type": ("layer_norm",),
        "logn_attention_clip1": (False,),
        "logn_attention_scale": (False,),
        "pack_qkv": (True,),
        "position_embedding_type": ("rope",),
    },
    build=_build,
    prefixes=("gte.", "new."),
    ignored=(r"(lm_head|pooler|classifier)\..*", r".*rotary_emb\.inv_freq"),
    auto_map=True,
    view=view,
)
FAMILIES = {"gte": _FAMILY, "new": _FAMILY}
