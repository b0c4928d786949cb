"""One shape: its files are made, saved again, exported, and compared."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedserve.config.models_toml import ModelSpec
from embedserve.errors import StartupError
from export import build, steps
from export.steps import Nurseries
from tests.models.comparison import Case, WrongError, compare, read
from tests.models.records import Record
from tests.models.shapes import Shape, Words
from tests.models.texts import PROMPTED, TEXTS

# Refused before anything heavy.
REFUSED_WITHIN = 30.0


@dataclass(frozen=True, slots=True)
class Files:
    """Directories of one shape: as published, as the reference reads it, and saved again."""

    published: Path
    reference: Path
    resaved: Path | None


def make(shape: Shape, directory: Path, nurseries: Nurseries) -> Files:
    """Write a shape's files under `directory`, each by the libraries that write such files."""
    directory.mkdir(parents=True)
    published, native, resaved = (directory / n for n in ("published", "native", "resaved"))
    job = {"maker": shape.maker, "directory": str(published)}
    libraries = None if shape.by_today else steps.OPTIMUM
    _run(nurseries, "tests.models.make_step", job, directory, libraries)
    again = resaved if shape.resaved_refused is not None else None
    today = {
        "published": str(published),
        "native": str(native),
        "writer": shape.native,
        "resaved": None if again is None else str(again),
    }
    if shape.native is not None or again is not None:
        _run(nurseries, "tests.models.today_step", today, directory)
    return Files(published, published if shape.native is None else native, again)


def examine(
    shape: Shape, files: Files, resaved: bool, directory: Path, nurseries: Nurseries
) -> Record:
    """Export the published files, or those saved again, and compare with the reference."""
    source = files.published
    wishes, refused = shape.wishes, shape.refused
    if resaved:
        assert files.resaved is not None and shape.resaved_refused is not None
        source, refused = files.resaved, shape.resaved_refused
        # An adapter that is merged has no task any more.
        wishes = {key: value for key, value in wishes.items() if key != "task"}
    reference = source if resaved else files.reference
    convert = shape.convert_pickle and not resaved
    spec = ModelSpec(name="m", **wishes)  # type: ignore[arg-type]

    def export(out: Path) -> None:
        build.export(spec, out, source, True, lambda _: None, nurseries, convert)

    record = prove(export, wishes, reference, directory, nurseries)
    return record if record.outcome != "refused" else expected(record, refused)


def prove(
    export: Callable[[Path], None],
    wishes: Mapping[str, Any],
    reference: Path,
    directory: Path,
    nurseries: Nurseries,
    name: str = "m",
) -> Record:
    """Export into a folder of `directory`, and compare with sentence-transformers."""
    directory.mkdir(parents=True)
    out = directory / "out"
    began = time.monotonic()
    try:
        export(out)
    except StartupError as error:
        line = _without(str(error), directory, reference)
        return Record("refused", line, seconds=round(time.monotonic() - began, 1))
    except Exception as error:  # a crash is what this looks for
        return Record("failed", f"{type(error).__name__}: {error}")
    seconds = round(time.monotonic() - began, 1)
    manifest = read(out / name)
    facts: dict[str, Any] = {
        "model_type": manifest.model_type,
        "masked_up_to": manifest.masked_up_to,
        "seconds": seconds,
    }
    assert manifest.parity is not None
    is_optimums = "optimum" in " ".join(manifest.parity.graph_versions)
    facts["graph"] = "optimum" if is_optimums else "family"
    cases = _cases(manifest.prompts.values())
    answers = directory / "answers.npz"
    job = {
        "directory": str(reference),
        "max_tokens": wishes.get("max_tokens"),
        "cases": [[case.text, case.prompt] for case in cases],
        "finishing": list(wishes.get("finishing", ())),
        "answers": str(answers),
    }
    try:
        _run(nurseries, "tests.models.reference_step", job, directory)
        found = compare(out / name, manifest, cases, answers)
    except WrongError as error:
        return Record("wrong", str(error), **facts)
    return Record(
        "proven",
        max_difference=found.max_difference,
        min_cosine=found.min_cosine,
        texts=found.texts,
        longest=found.longest,
        **facts,
    )


def expected(record: Record, words: Words) -> Record:
    """A refusal as it is, if it is one that is expected: quick, one line, with these words."""
    missing = [word for word in words if word not in record.line]
    if not words:
        problem = "refused, and should be proven"
    elif missing:
        problem = f"the line does not say {', '.join(missing)}"
    elif "\n" in record.line:
        problem = "more than one line"
    elif record.seconds > REFUSED_WITHIN:
        problem = f"refused after {record.seconds} s"
    else:
        return record
    return Record("failed", f"{problem}: {record.line}", seconds=record.seconds)


def _cases(prompts: Sequence[str] | Any) -> list[Case]:
    cases = [Case(text) for text in TEXTS]
    for prompt in dict.fromkeys(prompts):
        if prompt:
            cases += [Case(text, prompt) for text in PROMPTED]
    return cases


def _run(
    nurseries: Nurseries,
    module: str,
    job: Mapping[str, Any],
    scratch: Path,
    path: Path | None = None,
) -> None:
    with nurseries.start(module, json.loads(json.dumps(job)), scratch, path) as step:
        step.result()


def _without(line: str, *places: Path) -> str:
    """A line without the paths of this machine."""
    for place in places:
        for one in (place, place.parent):
            line = line.replace(f"{one}/", "")
    return re.sub(r"\b(published|native|resaved)/", "", line)


def remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
