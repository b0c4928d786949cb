"""`python -m export [NAME ...]`: make the artifacts of models.toml's models."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedserve import __version__
from embedserve.config import models_toml
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from embedserve.escapes import escaped
from export import build
from export.families.static_embedding import NO_LIMIT
from export.steps import Nurseries

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
COMMAND = "add"  # export/add.py; no model can have this name


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one model's export ended: a result, or why there is none."""

    name: str
    result: build.Result | None = None
    error: StartupError | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; errors are one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == [COMMAND]:
        from export import add

        return add.main(arguments[1:])
    options = parser().parse_args(arguments)
    try:
        if options.convert_pickle and not options.names:
            raise StartupError("--convert-pickle needs the names of the models", Exit.USAGE)
        specs = _choose(models_toml.read(options.models).models, options.names, options.models)
        directories = _directories(specs, options.source)
        with Nurseries() as nurseries:
            outcomes = [
                _export(spec, options, directories.get(spec.name), nurseries) for spec in specs
            ]
    except StartupError as error:
        print(f"export: {error}", file=sys.stderr)
        return int(error.status)
    except KeyboardInterrupt:
        print("export: interrupted; no unfinished artifact was published", file=sys.stderr)
        return INTERRUPTED
    print(summary(outcomes))
    return _status(outcomes, strict=bool(options.names))


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m export",
        description="Make the artifacts that embedserve serves, each compared with "
        "sentence-transformers before it is published.",
        epilog="python -m export add OWNER/NAME adds a model of the hub to models.toml first.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="models of models.toml; default: all that are not optional",
    )
    parser.add_argument(
        "--models", type=Path, default=Path("models.toml"), help="default: %(default)s"
    )
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="default: %(default)s")
    parser.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="DIR",
        help="look here first: a model's directory, or one that has a subdirectory NAME",
    )
    parser.add_argument(
        "--force", action="store_true", help="export models again that are up to date"
    )
    parser.add_argument(
        "--convert-pickle",
        action="store_true",
        help="convert weights that exist only as a pickle, which can run code when it is read: a "
        "confined process reads it, and only tensors are accepted",
    )
    parser.add_argument("--version", action="version", version=f"embedserve {__version__}")
    return parser


class Parser(argparse.ArgumentParser):
    """argparse with the exit status of sysexits.h."""

    def error(self, message: str) -> None:  # type: ignore[override]  # exits, as argparse's does
        self.exit(int(Exit.USAGE), f"export: {escaped(message)}; see python -m export --help\n")


def _choose(models: Mapping[str, ModelSpec], names: Sequence[str], path: Path) -> list[ModelSpec]:
    for name in names:
        if name not in models:
            raise StartupError(f"{name}: not in {path}; one of {', '.join(models)}", Exit.USAGE)
    chosen = names or [name for name, spec in models.items() if not spec.optional]
    if not chosen:
        raise StartupError(
            f"{path}: every model is optional; name one of {', '.join(models)}", Exit.USAGE
        )
    return [models[name] for name in dict.fromkeys(chosen)]


def _directories(specs: Sequence[ModelSpec], source: Path | None) -> dict[str, Path]:
    """Return name -> directory of --from: DIR itself for the only model, else DIR/NAME."""
    if source is None:
        return {}
    if not source.is_dir():
        raise StartupError(f"--from {source}: no such directory", Exit.NOINPUT)
    if (source / "modules.json").exists():
        if len(specs) != 1:
            raise StartupError(
                f"--from {source}: holds one model, but {len(specs)} are asked for; name one",
                Exit.USAGE,
            )
        return {specs[0].name: source}
    return {spec.name: source / spec.name for spec in specs}


def _export(
    spec: ModelSpec, options: argparse.Namespace, source: Path | None, nurseries: Nurseries
) -> Outcome:
    out: Path = options.out
    start = time.monotonic()

    def progress(message: str) -> None:
        seconds = time.monotonic() - start
        said = escaped(f"{spec.name}: {message} ({seconds:.1f} s)")
        print(said, file=sys.stderr, flush=True)

    try:
        result = build.export(
            spec, out, source, options.force, progress, nurseries, options.convert_pickle
        )
    except StartupError as error:
        print(f"{spec.name}: {error}", file=sys.stderr)
        return Outcome(spec.name, error=error)
    if result.kept:
        progress("up to date, kept; --force exports it again")
    else:
        progress(f"published {out / spec.name}")
    return Outcome(spec.name, result)


def _status(outcomes: Sequence[Outcome], strict: bool) -> int:
    """The first failure's status. Without names on the command line, 0 unless all failed."""
    failures = [outcome.error for outcome in outcomes if outcome.error is not None]
    if not failures or (not strict and len(failures) < len(outcomes)):
        return 0
    return int(failures[0].status)


def summary(outcomes: Sequence[Outcome]) -> str:
    """A table of the artifacts: size, time and parity, or why one was not made."""
    heads = ("model", "", "MB", "seconds", "peak MB", "max |diff|", "min cosine", "texts", "tokens")
    rows = [heads, *(_row(o.name, o.result) for o in outcomes if o.result is not None)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = []
    if len(rows) > 1:
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
    lines += [f"{o.name}  failed  {o.error}" for o in outcomes if o.error is not None]
    return "\n".join(escaped(line.rstrip()) for line in lines)


def _row(name: str, result: build.Result) -> tuple[str, ...]:
    parity = result.manifest.parity
    figures = ("", "", "", "")
    if parity is not None:
        figures = (
            f"{parity.max_abs_difference:.1e}",
            f"{parity.min_cosine:.7f}",
            str(parity.texts),
            _compared(result.manifest.max_tokens, parity.longest),
        )
    state = "kept" if result.kept else "exported"
    peak = f"{result.peak_bytes / 1e6:.0f}" if result.peak_bytes else ""
    return (name, state, f"{result.megabytes:.1f}", f"{result.seconds:.1f}", peak, *figures)


def _compared(limit: int, longest: int) -> str:
    return str(longest) if longest >= limit or limit == NO_LIMIT else f"{longest} of {limit}"
