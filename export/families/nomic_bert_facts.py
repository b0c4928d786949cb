"""What a nomic_bert config.json says, in the hub's form, in transformers 5's, or in both.

The configuration of nomic-embed-text-v1.5 on the hub carries both sets of names at once, so
names are merged, and two values for one fact must agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Facts:
    """The numbers that, with the weights, determine a nomic_bert model's hidden states."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    type_vocab_size: int
    layer_norm_eps: float
    rope_theta: float

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


# Each fact under transformers 5's name and the hub's (GPT-2) name.
_NAMES: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "intermediate_size": ("intermediate_size", "n_inner"),
    "type_vocab_size": ("type_vocab_size",),
    "layer_norm_eps": ("layer_norm_eps", "layer_norm_epsilon"),
    "rope_theta": ("rope_parameters.rope_theta", "rotary_emb_base"),
}

# Keys that change the arithmetic, with the only values that are implemented here. None means
# that the key may also be null or absent; a key without it has a default in the hub's code that
# is not the accepted value, so it must be written down.
_ACCEPTED: dict[str, tuple[object, ...]] = {
    "model_type": ("nomic_bert",),
    "activation_function": ("swiglu", None),
    "hidden_act": ("silu", None),
    "prenorm": (False, None),
    "use_rms_norm": (False, None),
    "norm_mlp": (False, None),
    "parallel_block": (False, None),
    "parallel_block_tied_norm": (False, None),
    "causal": (False, None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "add_pooling_layer": (False, None),
    "qkv_proj_bias": (False, None),
    "mlp_fc1_bias": (False, None),
    "mlp_fc2_bias": (False, None),
    "scale_attn_weights": (True, None),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "rotary_emb_fraction": (1, None),
    "rotary_emb_interleaved": (False, None),
    "rotary_emb_scale_base": (None,),
    "rotary_head_dim": (False, None),
    # A set factor makes the base depend on the length of the padded batch in the hub's code:
    # a text's vector would depend on its neighbours, and no published nomic model sets it.
    "rotary_scaling_factor": (None,),
    "rope_scaling": (None,),
    "rope_parameters.rope_type": ("default", None),
    "rope_parameters.factor": (None,),
    "rope_parameters.partial_rotary_factor": (1, None),
    "partial_rotary_factor": (1, None),
    "position_embedding_type": ("rotary", None),
    "moe_every_n_layers": (0, None),
    "num_experts": (0, None),
    "quantization_config": (None,),
    "attn_implementation": ("sdpa", None),
    "_attn_implementation": ("sdpa", None),
    "_attn_implementation_internal": (None,),
    "_attn_implementation_autoset": (False, True, None),
}

# Keys that say nothing about an inference in float32 at any length: training, dropout, the
# language-model head, book-keeping, and limits that belong to the tokenizer.
_WITHOUT_EFFECT = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attention_probs_dropout_prob",
        "attn_pdrop",
        "bos_token_id",
        "classifier_dropout",
        "default_theta",
        "dense_seq_output",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "fused_bias_fc",
        "fused_dropout_add_ln",
        "hidden_dropout_prob",
        "initializer_range",
        "last_layer_subset",
        "max_position_embeddings",
        "max_trained_positions",
        "n_ctx",
        "n_positions",
        "name_or_path",
        "pad_token_id",
        "pad_vocab_size_multiple",
        "reorder_and_upcast_attn",
        "resid_pdrop",
        "rope_parameters",
        "rope_parameters.original_max_position_embeddings",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "use_flash_attn",
        "use_xentropy",
    }
)


def read_facts(config: Mapping[str, object], *, allow_auto_map: bool = False) -> Facts:
    """Read config.json's content, in either form or both.

    `auto_map` names remote code. The project refuses it, and so does this function, unless the
    caller says with `allow_auto_map` that the code it names is replaced by NomicBertModel: the
    hub's nomic checkpoints carry it, and none of it is ever fetched or run.
    Raises ValueError with the key, the value found and the values accepted for anything that is
    missing, contradictory, unknown, or not implemented exactly.
    """
    values = _flatten(config)
    if values.pop("auto_map", None) is not None and not allow_auto_map:
        raise ValueError("config.json: auto_map names remote code; accepted: no auto_map")
    _refuse_unimplemented(values)
    facts = Facts(
        **{fact: _integer(fact, values) for fact in list(_NAMES)[:6]},
        layer_norm_eps=_number("layer_norm_eps", values),
        rope_theta=_number("rope_theta", values),
    )
    _refuse_head_sizes(facts, values)
    return facts


def _flatten(config: Mapping[str, object]) -> dict[str, object]:
    values = dict(config)
    rope = values.get("rope_parameters")
    if isinstance(rope, Mapping):
        values |= {f"rope_parameters.{key}": value for key, value in rope.items()}
        values.setdefault("rope_parameters.rope_type", None)
    elif rope is not None:
        raise ValueError(f"config.json: rope_parameters = {rope!r}; accepted: an object")
    return values


def _refuse_unimplemented(values: Mapping[str, object]) -> None:
    if "model_type" not in values:
        raise ValueError("config.json: model_type is missing; accepted: 'nomic_bert'")
    for key, accepted in _ACCEPTED.items():
        if not _is_one_of(values.get(key), accepted):
            names = " or ".join("null" if value is None else repr(value) for value in accepted)
            raise ValueError(f"config.json: {key} = {values[key]!r}; accepted: {names}")
    # Without one of these the hub's code falls back to GELU and to no rotary embedding.
    for either in (
        ("activation_function", "hidden_act"),
        ("rotary_emb_fraction", "rope_parameters.rope_type"),
    ):
        if all(values.get(key) is None for key in either):
            accepted_value = _ACCEPTED[either[0]][0]
            raise ValueError(
                f"config.json: {either[0]} is missing; accepted: {accepted_value!r}"
                f" (or {either[1]} = {_ACCEPTED[either[1]][0]!r})"
            )
    _refuse_unknown(values)


def _refuse_unknown(values: Mapping[str, object]) -> None:
    """An unknown key is harmless only if it is off, or says what transformers says anyway."""
    facts = {name for names in _NAMES.values() for name in names}
    known = facts | _ACCEPTED.keys() | _WITHOUT_EFFECT | {"head_dim", "num_heads_kv"}
    defaults = PretrainedConfig().to_dict()
    for key in sorted(values.keys() - known):
        value = values[key]
        if value is None or value is False or (key in defaults and defaults[key] == value):
            continue
        raise ValueError(f"config.json: {key} = {value!r} is unknown; accepted: null or absent")


def _refuse_head_sizes(facts: Facts, values: Mapping[str, object]) -> None:
    if facts.hidden_size % (2 * facts.num_attention_heads):
        raise ValueError(
            f"config.json: hidden_size = {facts.hidden_size}; accepted: a multiple of"
            f" 2 * num_attention_heads = {2 * facts.num_attention_heads}"
        )
    expected = {"head_dim": facts.head_size, "num_heads_kv": facts.num_attention_heads}
    for key, accepted in expected.items():
        if not _is_one_of(values.get(key), (accepted, None)):
            raise ValueError(f"config.json: {key} = {values[key]!r}; accepted: {accepted}")


def _is_one_of(value: object, accepted: tuple[object, ...]) -> bool:
    # bool is an int in Python, and 1 == True would let `prenorm = 0` or `fraction = true` pass.
    return any(
        value == one and isinstance(value, bool) == isinstance(one, bool) for one in accepted
    )


def _fact(fact: str, values: Mapping[str, object]) -> tuple[str, object]:
    found = {key: values[key] for key in _NAMES[fact] if values.get(key) is not None}
    if not found:
        raise ValueError(f"config.json: {' or '.join(_NAMES[fact])} is missing; accepted: a number")
    key, value = next(iter(found.items()))
    for other, other_value in found.items():
        if other_value != value:
            raise ValueError(
                f"config.json: {other} = {other_value!r} contradicts {key} = {value!r};"
                " accepted: equal values"
            )
    return key, value


def _integer(fact: str, values: Mapping[str, object]) -> int:
    key, value = _fact(fact, values)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: {key} = {value!r}; accepted: an integer of 1 or more")
    return value


def _number(fact: str, values: Mapping[str, object]) -> float:
    key, value = _fact(fact, values)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"config.json: {key} = {value!r}; accepted: a number above 0")
    return float(value)
