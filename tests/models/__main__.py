"""Make every shape, export it and its re-save, and compare: `make test-models`.

    .venv-export/bin/python -m tests.models [SHAPE ...] [--update] [--keep DIR] [--real]

Without names the whole run is written to results.json; with --update, what was seen of those that
are named takes the place of what is there. The exit status is 1 when a shape did not become what
tests/models/shapes.py says.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import export  # noqa: F401  # sets what the libraries read at import
from export.libraries import versions
from export.steps import Nurseries
from tests.models import examination, real, records
from tests.models.machine import processor
from tests.models.records import Record, Results
from tests.models.shapes import SHAPES

_LIBRARIES = (
    "sentence-transformers",
    "transformers",
    "torch",
    "tokenizers",
    "onnx",
    "onnxruntime",
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.models")
    parser.add_argument("shapes", nargs="*", help="some of the shapes; default: all")
    parser.add_argument("--keep", type=Path, help="leave all files in this new directory")
    parser.add_argument("--real", action="store_true", help="real weights only")
    parser.add_argument("--update", action="store_true", help="write the named into results.json")
    options = parser.parse_args(arguments)
    names = options.shapes or list(SHAPES)
    if unknown := sorted(set(names) - set(SHAPES)):
        parser.error(f"no shape {', '.join(unknown)}; shapes: {', '.join(SHAPES)}")
    is_whole = not options.shapes and not options.real
    shapes: dict[str, Record] = {}
    resaved: dict[str, Record] = {}
    seen: dict[str, Record] = {}
    began = time.monotonic()
    with _place(options.keep) as place, Nurseries() as nurseries:
        for name in () if options.real else names:
            _examine(name, place, nurseries, shapes, resaved)
            if options.keep is None:
                examination.remove(place / name)
        if is_whole or options.real:
            for name in real.MODELS:
                seen[name] = real.examine(name, place / f"real-{name}", nurseries)
                _print(name, "real", seen[name])
    results = Results(
        command="make test-models",
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        versions=versions(_LIBRARIES),
        processor=processor(),
        shapes=shapes,
        resaved=resaved,
        real=seen,
    )
    if is_whole:
        records.write(results)
    elif options.update:
        records.write(records.updated(records.read(), results, list(SHAPES)))
    found = [*shapes.values(), *resaved.values(), *seen.values()]
    bad = [record for record in found if record.outcome in ("wrong", "failed")]
    print(f"{len(found)} in {time.monotonic() - began:.0f} s; {len(bad)} not as they should be")
    return 1 if bad else 0


def _examine(
    name: str,
    place: Path,
    nurseries: Nurseries,
    shapes: dict[str, Record],
    resaved: dict[str, Record],
) -> None:
    shape = SHAPES[name]
    try:
        files = examination.make(shape, place / name, nurseries)
    except Exception as error:  # of one shape: the others are looked at all the same
        shapes[name] = Record("failed", f"its files cannot be made: {error}")
        _print(name, "", shapes[name])
        return
    work = place / name / "of-published"
    shapes[name] = examination.examine(shape, files, False, work, nurseries)
    _print(name, "published", shapes[name])
    if files.resaved is not None:
        work = place / name / "of-resaved"
        resaved[name] = examination.examine(shape, files, True, work, nurseries)
        _print(name, "saved again", resaved[name])


def _print(name: str, which: str, record: Record) -> None:
    figures = record.line
    if record.max_difference is not None:
        figures = f"{record.max_difference:.1e} {record.min_cosine:.7f} {record.graph}"
        figures += f" {record.longest} tokens, masked up to {record.masked_up_to}"
    print(f"{name:36} {which:12} {record.outcome:8} {record.seconds:5} s  {figures}", flush=True)


@contextlib.contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="test-models-") as directory:
        yield Path(directory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
