"""Which keys config.json may have: the family's own, and those no hidden state depends on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.families.family import Keys
from export.files import Json, refused

_HEAD = "belongs to a head; hidden states are the base model's"
_GENERATION = "belongs to generating text"
_TRAINING = "is used in training only"
_RECORD = "says who wrote the file, or how"
_OUTPUT = "asks for more outputs; the last hidden state is the same"
_IDS = "names a special token's id; the tokenizer's files say which ids a text has"
_PRECISION = "says how weights are stored; they are widened to float32, which is exact"

# key -> why its value cannot change a vector. Everything else has to be known to the family.
COMMON: Mapping[str, str] = {
    "architectures": _RECORD,
    "model_type": "chooses the family",
    "_name_or_path": _RECORD,
    "name_or_path": _RECORD,
    "_commit_hash": _RECORD,
    "transformers_version": _RECORD,
    "transformers.js_config": _RECORD,
    "_attn_implementation_autoset": _RECORD,  # written by 4.46 to 4.50
    "tokenizer_class": "chooses the tokenizer, whose ids are compared",
    "torch_dtype": _PRECISION,
    "dtype": _PRECISION,
    "initializer_range": _TRAINING,
    "initializer_factor": _TRAINING,
    "gradient_checkpointing": _TRAINING,
    "attention_dropout": _TRAINING,
    "attention_probs_dropout_prob": _TRAINING,
    "hidden_dropout_prob": _TRAINING,
    "hidden_dropout": _TRAINING,
    "dropout": _TRAINING,
    "classifier_dropout": _HEAD,
    "classifier_dropout_prob": _HEAD,
    "label2id": _HEAD,
    "id2label": _HEAD,
    "num_labels": _HEAD,
    "problem_type": _HEAD,
    "finetuning_task": _HEAD,
    "task_specific_params": _HEAD,
    "tie_word_embeddings": _HEAD,
    "use_cache": _GENERATION,
    "bos_token_id": _IDS,
    "eos_token_id": _IDS,
    "cls_token_id": _IDS,
    "sep_token_id": _IDS,
    "mask_token_id": _IDS,
    "unk_token_id": _IDS,
    "decoder_start_token_id": _GENERATION,
    # transformers before 3 saved all of these, and so does a saved to_dict().
    **dict.fromkeys(
        (
            "bad_words_ids",
            "begin_suppress_tokens",
            "cross_attention_hidden_size",
            "diversity_penalty",
            "do_sample",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "exponential_decay_length_penalty",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "length_penalty",
            "max_length",
            "min_length",
            "no_repeat_ngram_size",
            "num_beam_groups",
            "num_beams",
            "num_return_sequences",
            "output_scores",
            "prefix",
            "remove_invalid_values",
            "repetition_penalty",
            "return_dict_in_generate",
            "suppress_tokens",
            "temperature",
            "tf_legacy_loss",
            "tie_encoder_decoder",
            "top_k",
            "top_p",
            "typical_p",
        ),
        _GENERATION,
    ),
    "output_attentions": _OUTPUT,
    "output_hidden_states": _OUTPUT,
    "output_past": _OUTPUT,
    "return_dict": _OUTPUT,
    "max_position_embeddings": "a limit; the limit of a text is read and compared on its own",
}

# Keys of every configuration. Any other value would change vectors.
COMMON_VALUES: Keys = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "torchscript": (False,),
    "use_bfloat16": (False,),
}


def check(config: Json, keys: Keys, path: Path) -> None:
    """Refuse a key that neither COMMON nor the family knows, and a value that is not accepted."""
    known = {**COMMON_VALUES, **keys}
    for key, value in config.items():
        if key in known:
            accepted = known[key]
            if accepted is not None and not _is_one_of(value, accepted):
                choices = ", ".join("null" if one is None else repr(one) for one in accepted)
                raise refused(f"{path}: {key} = {value!r} is not supported; accepted: {choices}")
        elif key not in COMMON:
            raise refused(
                f"{path}: key {key!r} (= {_shown(value)}) is unknown for model_type "
                f"{config.get('model_type')!r}: it might change vectors; remove it if it does not"
            )


def _is_one_of(value: object, accepted: tuple[object, ...]) -> bool:
    # bool is an int in Python, and 1 == True would let `is_decoder = 0` or `causal = 1` pass.
    return any(
        value == one and isinstance(value, bool) == isinstance(one, bool) for one in accepted
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
