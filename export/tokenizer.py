"""The tokenizer as today's libraries build it -> tokenizer.json, without its limits."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from embedserve.artifact import TOKENIZER
from embedserve.errors import Exit, StartupError
from export.facts import Facts
from export.families import static_embedding


def export(built: Path, facts: Facts, stage: Path) -> None:
    """Write stage/tokenizer.json from the file that the reference has written.

    transformers changes some tokenizers by what tokenizer_config.json says (case, accents, a
    space in front), so the one that it builds is written, not the model's file. Padding and
    truncation, which some files include, are left out: they belong to the manifest.
    """
    tokenizer = tokenizers.Tokenizer.from_str(built.read_text(encoding="utf-8"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if facts.model_type == static_embedding.KIND:
        tokenizer = static_embedding.without_special_tokens(tokenizer)
    if (largest := max(tokenizer.get_vocab().values(), default=-1)) >= facts.vocabulary:
        raise StartupError(
            f"{facts.directory / 'tokenizer.json'}: {tokenizer.id_to_token(largest)!r} has id "
            f"{largest}; the model has rows for {facts.vocabulary}",
            Exit.DATAERR,
        )
    (stage / TOKENIZER).write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
