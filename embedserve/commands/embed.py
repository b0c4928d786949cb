"""embedserve embed: a file of texts to a file of vectors."""

from __future__ import annotations

from itertools import islice
from typing import Any

from embedserve.commands.context import Command, context, present
from embedserve.errors import Exit, StartupError


def run(
    models: str | None,
    artifacts: str | None,
    model: list[str],
    provider: str | None,
    lanes: str | None,
    tokens_per_pass: str | None,
    **options: Any,
) -> int:
    """Embed a file of texts into a file of vectors, without a server; resumes after a kill."""
    flags = {"provider": provider, "lanes": lanes, "tokens_per_pass": tokens_per_pass}
    configuration, settings, paths = context(models, artifacts, flags)
    from embedserve.bulk import command
    from embedserve.model import loading

    if len(model) > 1:
        raise StartupError("embed takes one --model", Exit.USAGE)
    names = model or list(present(configuration, paths["artifacts"]))
    if len(names) > 1:
        raise StartupError(
            f"several models have artifacts; choose one with --model: {', '.join(names)}",
            Exit.USAGE,
        )
    (spec,) = loading.choose(
        configuration.models,
        names or list(islice(configuration.models, 1)),
        paths["artifacts"],
        skip_missing=False,
    )
    return command.embed(command.options(**options), spec, paths["artifacts"] / spec.name, settings)


COMMAND = Command(
    run,
    ("provider", "lanes", "tokens_per_pass"),
    {
        "source": {"metavar": "INPUT", "help": "texts: .jsonl, .csv, .tsv or .parquet"},
        "target": {"metavar": "OUTPUT", "help": "vectors: .parquet, .jsonl or .npy"},
        "--text-column": {"default": "text", "help": "column of the text"},
        "--vector-column": {
            "default": "embedding",
            "help": "column of the vector",
        },
        "--keep": {
            "action": "append",
            "metavar": "COLUMN",
            "help": "keep this column beside the vector; may be repeated; default: all",
        },
        "--drop": {
            "action": "append",
            "default": [],
            "metavar": "COLUMN",
            "help": "drop this column; may be repeated",
        },
        "--prompt-name": {"metavar": "NAME", "help": "one of the model's prompts, for every text"},
        "--dimensions": {
            "type": int,
            "help": "cut vectors to this size and rescale them, for Matryoshka models",
        },
        "--dtype": {
            "choices": ("float32", "float16"),
            "default": "float32",
            "help": "type of the numbers",
        },
        "--truncate": {
            "choices": ("end", "start", "error"),
            "default": "end",
            "help": "cut this end of a text that is too long, or make it a bad row (error)",
        },
        "--on-error": {
            "choices": ("skip", "null", "stop"),
            "help": "skip a bad row, keep it without a vector (null), or stop; default: skip, but "
            "null for .npy, whose rows have only their position",
        },
        "--chunk-rows": {
            "type": int,
            "default": 4096,
            "metavar": "ROWS",
            "help": "rows per chunk, the unit of resume",
        },
        "--overwrite": {
            "action": "store_true",
            "help": "replace an existing OUTPUT, and discard what another job finished of it",
        },
        "--ray": {
            "metavar": "ADDRESS",
            "help": "run on the nodes of this Ray cluster: HOST:PORT, or auto",
        },
        "--artifacts-by": {
            "choices": ("object-store", "working-dir", "path"),
            "default": "object-store",
            "help": "how the artifact reaches the nodes",
        },
    },
)
