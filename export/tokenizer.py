"""Files -> tokenizer.json: the tokenizer that sentence-transformers builds, without its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers

from embedserve.artifact import TOKENIZER
from embedserve.errors import Exit, StartupError
from export.facts import Facts


def export(facts: Facts, stage: Path) -> None:
    """Write stage/tokenizer.json. StartupError (65) when there is no fast tokenizer.

    transformers changes some tokenizers by what tokenizer_config.json says (case, accents, a
    space in front), so the one it builds is written and not the file as it is. Padding and
    truncation, which some files have baked in, are left out: they belong to the manifest.
    """
    # As tokenizer.json would be loaded by the server: a copy, so the library's own stays as it is.
    tokenizer = tokenizers.Tokenizer.from_str(_fast(facts).to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if facts.do_lower_case:
        _lower_case(tokenizer)
    (stage / TOKENIZER).write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")


def _fast(facts: Facts) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer

    untyped: Any = AutoTokenizer
    try:
        built: Any = untyped.from_pretrained(
            facts.directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # bare Exception among them
        raise StartupError(
            f"{facts.directory / 'tokenizer_config.json'}: transformers cannot build the "
            f"tokenizer: {(str(error).splitlines() or [type(error).__name__])[0]}",
            Exit.DATAERR,
        ) from error
    if not built.is_fast:
        raise StartupError(
            f"{facts.directory / 'tokenizer_config.json'}: tokenizer_class = "
            f"{type(built).__name__!r} does not use tokenizer.json; not supported",
            Exit.DATAERR,
        )
    if built.pad_token_id != facts.pad_token_id:
        raise StartupError(
            f"{facts.directory / 'tokenizer_config.json'}: pad_token has id {facts.pad_token_id} "
            f"in tokenizer.json and {built.pad_token_id} in transformers",
            Exit.DATAERR,
        )
    backend: tokenizers.Tokenizer = built.backend_tokenizer
    return backend


def _lower_case(tokenizer: tokenizers.Tokenizer) -> None:
    """Put Lowercase before the normalizers, unless one is there; as sentence-transformers does."""
    own: Any = tokenizer.normalizer
    is_sequence = isinstance(own, normalizers.Sequence)
    steps: list[Any] = [*own] if is_sequence else [] if own is None else [own]
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
