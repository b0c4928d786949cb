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
    """Embed a file of texts into a file of vectors, without a server; killed, it goes on."""
    flags = {"provider": provider, "lanes": lanes, "tokens_per_pass": tokens_per_pass}
    configuration, settings, paths = context(models, artifacts, flags)
    from embedserve.bulk import command
    from embedserve.model import loading

    if len(model) > 1:
        raise StartupError("embed takes one --model", Exit.USAGE)
    names = model or list(present(configuration, paths["artifacts"]))
    if len(names) > 1:
        raise StartupError(f"name one --model of {', '.join(names)}", Exit.USAGE)
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
        "--text-column": {"default": "text", "help": "where the text stands; default: text"},
        "--vector-column": {
            "default": "embedding",
            "help": "what the vector is called; default: embedding",
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
            "help": "do not keep this column; may be repeated",
        },
        "--prompt-name": {"metavar": "NAME", "help": "one of the model's prompts, for every text"},
        "--dimensions": {"type": int, "help": "cut and scale vectors, for Matryoshka models"},
        "--dtype": {
            "choices": ("float32", "float16"),
            "default": "float32",
            "help": "of the numbers; default: float32",
        },
        "--truncate": {
            "choices": ("end", "start", "error"),
            "default": "end",
            "help": "which end of a longer text is cut, or that it is a bad row; default: end",
        },
        "--on-error": {
            "choices": ("skip", "null", "stop"),
            "help": "leave a bad row out, keep it without a vector, or end; default: skip, and "
            "null for .npy, whose rows are known by their place",
        },
        "--chunk-rows": {
            "type": int,
            "default": 4096,
            "metavar": "ROWS",
            "help": "rows of what is finished at a time; default: 4096",
        },
        "--overwrite": {
            "action": "store_true",
            "help": "replace an OUTPUT that is there, and forget what another job finished of it",
        },
        "--ray": {
            "metavar": "ADDRESS",
            "help": "on the nodes of this Ray cluster: HOST:PORT, or auto",
        },
        "--artifacts-by": {
            "choices": ("object-store", "working-dir", "path"),
            "default": "object-store",
            "help": "how the artifact reaches the nodes; default: object-store",
        },
    },
)
