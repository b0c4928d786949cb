"""Which keys tokenizer_config.json may have.

The served tokenizer is the one that today's transformers builds from these files, and its ids are
compared on many texts. Unknown keys are refused all the same: one may stand for something that
sentence-transformers does with a text before or after the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.files import Json, refused

_BUILT = "goes into the tokenizer that transformers builds, which is the one served"
_CHAT = "belongs to conversations; no text here is one"
_RECORD = "says who wrote the file, or from where"
_DECODING = "acts when ids become text"
_PADDING = "padding is the server's, after the text; ids of a text alone are the same"
_SLOW = "read by tokenizers that do not use tokenizer.json; those are refused"

# key -> why it is accepted.
KEYS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "add_bos_token",
            "add_eos_token",
            "add_prefix_space",
            "added_tokens_decoder",
            "additional_special_tokens",
            "bos_token",
            "cls_token",
            "do_lower_case",
            "eos_token",
            "extra_ids",
            "extra_special_tokens",
            "from_slow",
            "keep_accents",
            "lang_tokens",
            "legacy",
            "mask_token",
            "model_specific_special_tokens",
            "never_split",
            "pad_token",
            "remove_space",
            "sep_token",
            "split_by_punct",
            "split_special_tokens",
            "strip_accents",
            "tokenize_chinese_chars",
            "tokenizer_class",
            "trim_offsets",
            "unk_id",
            "unk_token",
            "vocab_type",
        ),
        _BUILT,
    ),
    **dict.fromkeys(("chat_template", "use_default_system_prompt", "response_schema"), _CHAT),
    **dict.fromkeys(
        (
            "_commit_hash",
            "backend",
            "is_local",
            "local_files_only",
            "name_or_path",
            "processor_class",
            "special_tokens_map_file",
            "tokenizer_file",
            "transformers_version",
            "use_fast",
        ),
        _RECORD,
    ),
    **dict.fromkeys(
        ("clean_up_tokenization_spaces", "spaces_between_special_tokens", "errors"), _DECODING
    ),
    **dict.fromkeys(
        ("padding_side", "padding", "pad_to_multiple_of", "pad_token_type_id", "pad_token_id"),
        _PADDING,
    ),
    **dict.fromkeys(
        (
            "do_basic_tokenize",
            "do_subword_tokenize",
            "do_word_tokenize",
            "jumanpp_kwargs",
            "mecab_kwargs",
            "sp_model_kwargs",
            "subword_tokenizer_type",
            "sudachi_kwargs",
            "word_tokenizer_type",
            "vocab_file",
            "merges_file",
        ),
        _SLOW,
    ),
    "model_input_names": "which of ids, mask and types there are; the graph decides that",
    "model_max_length": "read as the limit, which is compared with sentence-transformers' own",
    "max_len": "an old name of model_max_length, which today's transformers does not read",
    "max_length": "a default of one call, which sentence-transformers does not make",
    "stride": "a default of one call, which sentence-transformers does not make",
    "truncation": "a default of one call, which sentence-transformers does not make",
    "truncation_strategy": "a default of one call, which sentence-transformers does not make",
}
_RIGHT = ("right", None)


def check(config: Json, path: Path) -> None:
    """Refuse remote code, truncation at the start of a text, and unknown keys."""
    if "auto_map" in config:
        raise refused(f"{path}: auto_map names remote code; it is never run")
    if (side := config.get("truncation_side")) not in _RIGHT:
        raise refused(f'{path}: truncation_side = {side!r} is not supported; accepted: "right"')
    for key in config.keys() - KEYS.keys() - {"truncation_side"}:
        if not key.endswith(
            "_token"
        ):  # a special token of the model's own, as transformers 5 reads it
            raise refused(f"{path}: key {key!r} is unknown; remove it if it changes no token id")
