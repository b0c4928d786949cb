"""nomic_bert: rotary positions and SwiGLU; the hub's files, and transformers'.

Nussbaum et al., https://arxiv.org/abs/2402.01613. The hub's files have GPT-2's key names
(n_embd, n_inner, rotary_emb_base, ...). transformers 5.24 reads none of them: it uses the sizes of
nomic-embed-text-v1 instead, whatever the file says. `view` translates them.
"""

from __future__ import annotations

from typing import Any

from export.families.family import Built, Family
from export.families.layers import ACTIVATIONS, Layers
from export.families.rotary_encoder import Architecture, Names, build, transformers_names
from export.files import Json, refused

_HUB_NAMES = Names(
    norm="emb_ln",
    layers="encoder.layers",
    projections=("attn.Wqkv",),
    output="attn.out_proj",
    attention_norm="norm1",
    up=("mlp.fc11", "mlp.fc12"),
    down="mlp.fc2",
    feed_norm="norm2",
)
_ARCHITECTURE = Architecture(
    names=(_HUB_NAMES, transformers_names("mlp.up_proj", "mlp.gate_proj", down="mlp.down_proj")),
    gated=True,
    attention_bias=False,
    up_bias=False,
    down_bias=False,
)

# The hub's name of a number -> transformers'.
_SIZES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "vocab_size": "vocab_size",
    "type_vocab_size": "type_vocab_size",
}
_EPS, _THETA = "layer_norm_epsilon", "rotary_emb_base"


def view(config: Json) -> Json | None:
    """Return config.json under transformers' names; None for a file that transformers saved.

    Every number has to be there: transformers' defaults are one model's. If a file has both names,
    as nomic-embed-text-v1.5 does, they must agree. Otherwise StartupError names the key.
    """
    _refuse_experts(config)
    if not any(key in config for key in ("n_embd", "n_layer", "n_head", "n_inner", _THETA)):
        return None
    # Without these two the hub's code uses GELU and no rotary positions.
    _expect(config, "activation_function", "swiglu")
    _expect(config, "rotary_emb_fraction", 1.0)
    for key, accepted in (("hidden_act", "silu"), ("rope_scaling", None)):
        if config.get(key) is not None:
            _expect(config, key, accepted)
    sizes = {name: _integer(config, key) for key, name in _SIZES.items()}
    eps, theta = _number(config, _EPS), _number(config, _THETA)
    _agree(config.get("layer_norm_eps"), eps, "layer_norm_eps", _EPS)
    rope = config.get("rope_parameters") or {}
    _agree(rope.get("rope_theta"), theta, "rope_parameters: rope_theta", _THETA)
    _agree(config.get("rope_theta"), theta, "rope_theta", _THETA)
    for key, name in _SIZES.items():
        _agree(config.get(name), sizes[name], name, key)
    head = sizes["hidden_size"] // sizes["num_attention_heads"]
    _agree(config.get("head_dim"), head, "head_dim", "n_embd / n_head")
    _agree(config.get("num_heads_kv"), sizes["num_attention_heads"], "num_heads_kv", "n_head")
    return {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert",
        **sizes,
        "head_dim": head,
        "hidden_act": "silu",
        "layer_norm_eps": eps,
        "max_position_embeddings": config.get("n_positions", 2048),
        "pad_token_id": config.get("pad_token_id") or 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta, **rope},
    }


def _refuse_experts(config: Json) -> None:
    for key in ("moe_every_n_layers", "num_experts"):
        if config.get(key):
            raise refused(
                f"config.json: {key} = {config[key]!r}: a mixture of experts, which transformers"
                " cannot read for nomic_bert: there is nothing to compare with; accepted: 0"
            )


def _expect(config: Json, key: str, accepted: object) -> None:
    found = config.get(key)
    if found != accepted or isinstance(found, bool):
        raise refused(f"config.json: {key} = {found!r}; accepted: {accepted!r}")


def _integer(config: Json, key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise refused(f"config.json: {key} = {value!r}; accepted: an integer of 1 or more")
    return value


def _number(config: Json, key: str) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise refused(f"config.json: {key} = {value!r}; accepted: a number above 0")
    return float(value)


def _agree(found: object, expected: float, name: str, key: str) -> None:
    if found is not None and found != expected:
        raise refused(f"config.json: {name} = {found!r} contradicts {key} = {expected!r}")


def _build(config: Any, layers: Layers) -> Built:
    return build(config, layers, _ARCHITECTURE)


_READ = (
    *_SIZES.keys(),
    *_SIZES.values(),
    _EPS,
    _THETA,
    "layer_norm_eps",
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "head_dim",
    "num_heads_kv",
    "pad_token_id",
    "n_positions",
    "activation_function",
    "rotary_emb_fraction",
    "moe_every_n_layers",
    "num_experts",
)
# For heads, training and kernels, and records: inference in float32 does not depend on them.
_WITHOUT_EFFECT = (
    "attn_pdrop",
    "dense_seq_output",
    "embd_pdrop",
    "expert_choice_router",
    "ffn_div",
    "fused_bias_fc",
    "fused_dropout_add_ln",
    "last_layer_subset",
    "max_trained_positions",
    "moe_impl",
    "moe_normalize_expert_weights",
    "moe_resid_pdrop",
    "moe_top_k",
    "n_ctx",
    "num_shared_experts",
    "pad_vocab_size_multiple",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "router_aux_loss_coef",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "use_flash_attn",
    "use_xentropy",
)
_OFF = (False, None)

FAMILIES = {
    "nomic_bert": Family(
        keys={
            **dict.fromkeys((*_READ, *_WITHOUT_EFFECT)),
            **dict.fromkeys(
                (
                    "add_pooling_layer",
                    "causal",
                    "mlp_fc1_bias",
                    "mlp_fc2_bias",
                    "norm_mlp",
                    "parallel_block",
                    "parallel_block_tied_norm",
                    "prenorm",
                    "qkv_proj_bias",
                    "rotary_emb_interleaved",
                    "rotary_head_dim",
                    "scale_attn_by_inverse_layer_idx",
                    "use_rms_norm",
                ),
                _OFF,
            ),
            "auto_map": None,
            "hidden_act": (*ACTIVATIONS, None),
            "partial_rotary_factor": (1, None),
            "position_embedding_type": ("rotary", None),
            "rotary_emb_scale_base": (None,),
            # A factor makes the base depend on the length of the padded batch: a text's vector
            # would depend on its neighbours. No published nomic model sets it.
            "rotary_scaling_factor": (None,),
            "scale_attn_weights": (True, None),
        },
        build=_build,
        prefixes=("nomic_bert.",),
        ignored=(r"(cls|pooler|classifier)\..*", r".*rotary_emb\.inv_freq"),
        auto_map=True,
        view=view,
    )
}
