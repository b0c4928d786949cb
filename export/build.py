"""stage -> facts -> graph -> manifest -> verify -> atomic rename: one model's artifact, or none."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve import artifact
from embedserve.arrays.types import Ints
from embedserve.artifact import FinishingStep, Manifest
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from embedserve.system import atomic_write
from export import memory, pickles, sources, tasks, view
from export.pickles import Converted
from export.reference import Answers, Case, Question
from export.sources import Source
from export.steps import Nurseries
from export.texts import generated

if TYPE_CHECKING:
    from export.facts import Facts
    from export.graph import Graph

Progress = Callable[[str], None]

# Locks, stages and records of exports, inside --out: renames stay on one file system.
HOUSEKEEPING = ".export"

# Raise it when the same files give another graph or tokenizer: artifacts are then made again.
RECIPE = 5

# The files in an artifact's directory, besides its arrays (.npy).
_FILES = (
    artifact.MANIFEST,
    artifact.GRAPH,
    artifact.TOKENIZER,
    artifact.GOLDEN,
    artifact.WEIGHTS,
    artifact.POOLING_GRAPH,
)

# Directories of a run: the artifact to publish, and the model as it is read.
_STAGE, _VIEW = "stage", "view"
_PLACES = (_VIEW, tasks.DIRECTORY, pickles.DIRECTORY)

# The provider that will serve what is quantized, and on which its loss is measured.
_CERTIFIED_ON = "cpu"

# Up to this many bytes of weights in float32, graph and reference are made at the same time.
TOGETHER_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Result:
    """What is in --out after an export: kept as it was, or made in `seconds`."""

    manifest: Manifest
    kept: bool
    seconds: float
    origin: str = ""
    fused: Mapping[str, int] | None = None
    peak_bytes: int = 0

    @property
    def megabytes(self) -> float:
        return sum(record.bytes for record in self.manifest.files.values()) / 1e6


def export(
    spec: ModelSpec,
    out: Path,
    from_dir: Path | None,
    force: bool,
    progress: Progress,
    nurseries: Nurseries,
    convert_pickle: bool = False,
) -> Result:
    """Make out/NAME, or keep it if it is complete and made from the same source and wishes.

    `convert_pickle`: convert weights that exist only as a pickle (export/pickles.py).

    Publishes a verified artifact by a rename, or nothing at all. StartupError if that fails; 73 if
    `out` cannot be written, saying whether the new artifact was published.
    """
    start = time.monotonic()
    memory.forget_peak()
    outcome = "nothing was published"
    try:
        _check_place(out / spec.name)
        with _locked(out / HOUSEKEEPING / spec.name, progress) as home:
            if not force and (manifest := _up_to_date(spec, out, from_dir)) is not None:
                return Result(manifest, True, time.monotonic() - start)
            with _scratch(home) as scratch:
                result = _make(spec, scratch, from_dir, progress, nurseries, convert_pickle)
                _publish(scratch / _STAGE / spec.name, out / spec.name, scratch)
                outcome = "the new artifact was published"
                atomic_write.sync(out)
            _write_record(home, result.wishes)
            seconds = time.monotonic() - start
            return Result(
                result.manifest, False, seconds, result.origin, result.fused, result.peak_bytes
            )
    except Exception as error:
        raise _translated(error, out, outcome) from error


# -- the work ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Made:
    manifest: Manifest
    origin: str
    fused: Mapping[str, int]
    peak_bytes: int
    wishes: dict[str, Any]


def _make(
    spec: ModelSpec,
    scratch: Path,
    from_dir: Path | None,
    progress: Progress,
    nurseries: Nurseries,
    convert_pickle: bool,
) -> _Made:
    wishes = _wishes(spec)
    source = sources.open(spec, from_dir, scratch, progress, convert_pickle)
    with _named_after(source, scratch):
        return _make_from(source, wishes, spec, scratch, progress, nurseries, convert_pickle)


def _make_from(
    source: Source,
    wishes: dict[str, Any],
    spec: ModelSpec,
    scratch: Path,
    progress: Progress,
    nurseries: Nurseries,
    convert_pickle: bool,
) -> _Made:
    converted = Converted(source.directory, {})
    if convert_pickle:
        converted = pickles.convert(source.directory, scratch, progress)
    files = sources.digests(source.directory, pickles=bool(converted.origins))
    progress(f"files from {source.origin}")
    from export import comparison, facts, pooling_graph, tokenizer, verify

    directory = converted.directory
    if tasks.has_tasks(directory):
        directory = tasks.merge(directory, scratch, spec, nurseries)
        spec = replace(spec, task=None)
    found = facts.read(directory, spec)
    directory, found = _viewed(directory, found, scratch)
    stage = scratch / _STAGE / spec.name
    stage.mkdir(parents=True)
    cases = verify.cases(found, comparison.longest(found))
    texts = generated(found.directory / artifact.TOKENIZER)
    question = _question(directory, scratch, found, cases, texts)
    progress("making the graph, and asking sentence-transformers")
    written, answers = _graph_and_answers(found, question, stage, scratch, spec, nurseries)
    pooling_graph.export(found.pooling, found.hidden_size, stage / artifact.POOLING_GRAPH)
    tokenizer.export(answers.tokenizer, found, stage)
    manifest = _manifest(spec, found, _save_arrays(found.finishing, stage), written)
    manifest = replace(manifest, converted_from=converted.origins)
    if spec.precision in artifact.FLOORS:
        manifest = _quantized(manifest, spec, stage, [case.ids for case in answers.cases], progress)
    progress("comparing")
    parity, golden = verify.compare(stage, manifest, cases, texts, answers, written.versions)
    artifact.write_golden(stage, golden)
    manifest = artifact.write(stage, replace(manifest, parity=parity))
    artifact.check_files(stage, artifact.read(stage))
    record = {"fingerprint": manifest.fingerprint, "files": files, **wishes}
    peak = max(memory.peak(), written.peak_bytes, answers.peak_bytes)
    return _Made(manifest, source.origin, written.fused, peak, record)


def _quantized(
    manifest: Manifest,
    spec: ModelSpec,
    stage: Path,
    sequences: Sequence[Ints],
    progress: Progress,
) -> Manifest:
    """Convert the staged graph to the precision asked for; return the manifest with its loss.

    `sequences` are of texts other than those that the loss is measured on.
    """
    from export import int8, prose, quality, weights_file

    path, corpus = stage / artifact.GRAPH, prose.read()
    maxima = int8.column_maxima(path, sequences)
    progress(f"embedding {len(corpus.texts)} texts in float32")
    exact = quality.vectors(stage, replace(manifest, precision="fp32"), corpus, _CERTIFIED_ON)
    model = int8.convert(path, maxima)
    tables = tuple(weights_file.tables(model.graph, spec.precision))
    manifest = replace(manifest, tables=tables)
    progress(f"embedding them in {spec.precision}")
    found = quality.vectors(stage, manifest, corpus, _CERTIFIED_ON)
    floor = max(artifact.FLOORS[spec.precision], spec.agreement or 0.0)
    measured = quality.compare(exact, found, corpus, _CERTIFIED_ON, floor)
    quality.check(measured, spec.name)
    return replace(manifest, quality=measured)


@contextlib.contextmanager
def _named_after(source: Source, scratch: Path) -> Iterator[None]:
    """Name the source in errors, not a directory of `scratch`, which is removed after the run."""
    from_scratch = source.directory.is_relative_to(scratch)
    name = source.origin if from_scratch else str(source.directory)
    try:
        yield
    except StartupError as error:
        message = str(error)
        for place in (*_PLACES, source.directory.name if from_scratch else ""):
            message = message.replace(str(scratch / place), name) if place else message
        if message.startswith("config.json: "):  # a family does not know the directory
            message = f"{name}/{message}"
        raise StartupError(message, error.status) from error


def _viewed(directory: Path, found: Facts, scratch: Path) -> tuple[Path, Facts]:
    """The model and its facts, with files replaced that today's libraries must see otherwise."""
    viewed = view.make(directory, scratch / _VIEW, found.replaced)
    root = viewed / found.directory.relative_to(directory)
    return viewed, replace(found, directory=root)


def _question(
    directory: Path, scratch: Path, found: Facts, cases: Sequence[Case], texts: Sequence[str]
) -> Question:
    """The questions to the reference about a model."""
    place = scratch / "reference"
    place.mkdir()
    return Question(
        directory=directory,
        scratch=place,
        limit=found.own_limit,
        max_tokens=found.max_tokens,
        cases=cases,
        texts=texts,
        matryoshka=found.matryoshka,
        added=[(step.kind, step.eps) for step in found.finishing if step.added],
    )


def _graph_and_answers(
    found: Facts,
    question: Question,
    stage: Path,
    scratch: Path,
    spec: ModelSpec,
    nurseries: Nurseries,
) -> tuple[Graph, Answers]:
    """Run both processes, at the same time if both fit into memory."""
    from export import graph

    place = scratch / "graph"
    place.mkdir()
    with graph.start(found, spec.precision, stage, place, nurseries) as making:
        graph.check(found, spec.precision, place, nurseries)
        if found.weight_bytes > TOGETHER_BYTES:
            written = graph.finish(making, found, stage, spec.precision)
            with question.start(nurseries) as asking:
                return written, question.read(asking)
        with question.start(nurseries) as asking:
            written = graph.finish(making, found, stage, spec.precision)
            return written, question.read(asking)


def _manifest(
    spec: ModelSpec, found: Any, finishing: tuple[FinishingStep, ...], written: Any
) -> Manifest:
    return Manifest(
        name=spec.name,
        format=artifact.FORMAT,
        repository=spec.repository,
        revision=spec.revision,
        model_type=found.model_type,
        hidden_size=found.hidden_size,
        dimension=found.dimension,
        vocabulary=found.vocabulary,
        max_tokens=found.max_tokens,
        pooling=found.pooling,
        finishing=finishing,
        matryoshka=found.matryoshka,
        prompts=dict(found.prompts),
        default_prompt_name=found.default_prompt_name,
        # Whatever the tokenizer's own side is: a text's positions are then the same as when it is
        # alone, and every pooling mode finds its first and last token by the mask.
        padding_side="right",
        pad_token_id=found.pad_token_id,
        precision=spec.precision,
        masked_up_to=written.masked_up_to,
        tables=written.tables,
        fingerprint="",
        created=_created(),
    )


def _save_arrays(finishing: tuple[Any, ...], stage: Path) -> tuple[FinishingStep, ...]:
    """Write each step's arrays as .npy, named by the step's place."""
    steps = []
    for i, step in enumerate(finishing):
        names: dict[str, str | None] = {"weight": None, "bias": None}
        for part in names:
            array = getattr(step, part)
            if array is not None:
                names[part] = f"{i}_{step.kind}_{part}.npy"
                np.save(stage / f"{names[part]}", array, allow_pickle=False)
        steps.append(FinishingStep(step.kind, step.eps, step.activation, **names))
    return tuple(steps)


def _created() -> str:
    """Now, or SOURCE_DATE_EPOCH: https://reproducible-builds.org/specs/source-date-epoch/."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        seconds = time.time() if text is None else int(text)
        return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise StartupError(
            f"environment: SOURCE_DATE_EPOCH = {text!r}; seconds since 1970", Exit.USAGE
        ) from None


# -- kept or made again ------------------------------------------------------------------------


def _wishes(spec: ModelSpec) -> dict[str, Any]:
    """All keys of a model's table that change its artifact, as they come back from JSON."""
    values: dict[str, Any] = {
        "repository": spec.repository,
        "revision": spec.revision,
        "package": [asdict(package) for package in spec.package],
        "sha256": dict(spec.sha256),
        "finishing": spec.finishing,
        "matryoshka": spec.matryoshka,
        "prompts": None if spec.prompts is None else dict(spec.prompts),
        "precision": spec.precision,
        "max_tokens": spec.max_tokens,
        "task": spec.task,
        "recipe": RECIPE,
    }
    if spec.agreement is not None:  # records without it stay valid
        values["agreement"] = spec.agreement
    decoded: dict[str, Any] = json.loads(json.dumps(values))
    return decoded


def _up_to_date(spec: ModelSpec, out: Path, from_dir: Path | None) -> Manifest | None:
    """Return the manifest of a complete artifact made from these files and wishes, else None.

    The record beside the artifact says what it was made from. If there is none, or it belongs to
    another artifact, the result is None.
    """
    directory = out / spec.name
    try:
        record = json.loads((_home(out, spec) / "record.json").read_text(encoding="utf-8"))
        manifest = artifact.read(directory)
        artifact.check_files(directory, manifest)
    except (OSError, ValueError, StartupError):
        return None
    expected = {"fingerprint": manifest.fingerprint, **_wishes(spec)}
    files = record.pop("files", None) if isinstance(record, dict) else None
    if record != expected or manifest.name != spec.name:
        return None
    if from_dir is not None and from_dir.is_dir():
        own = sources.digests(from_dir, pickles=bool(manifest.converted_from))
        return manifest if own == files else None
    return manifest


def _write_record(home: Path, record: Mapping[str, Any]) -> None:
    """Record what the artifact was made from. If a crash loses it, the next run exports again."""
    path = home / "record.json"
    text = json.dumps(record, indent=1) + "\n"
    atomic_write.write(path, path.with_suffix(".new"), lambda file: file.write(text.encode()))


def _home(out: Path, spec: ModelSpec) -> Path:
    return out / HOUSEKEEPING / spec.name


# -- the directory -----------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(home: Path, progress: Progress) -> Iterator[Path]:
    """Lock the exports of one model into one directory, and remove what dead runs left."""
    home.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(home / "lock", flags, 0o666), "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another export of this model")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in home.glob("work-*"):
            _remove(left)
        yield home


@contextlib.contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """A directory that is removed after the run; temporary files of the libraries go there, too.

    In the system's own temporary directory a killed run would leave copies of the weights.
    """
    work = Path(tempfile.mkdtemp(prefix="work-", dir=home))
    usual, tempfile.tempdir = tempfile.tempdir, str(work)
    try:
        yield work
    finally:
        tempfile.tempdir = usual
        shutil.rmtree(work, ignore_errors=True)


def _check_place(final: Path) -> None:
    """Refuse to replace a directory that is not an artifact: it would be removed."""
    if not final.is_dir() or final.is_symlink():
        return
    for path in sorted(final.iterdir()):
        if path.name not in _FILES and path.suffix != ".npy":
            raise StartupError(
                f"{path}: is not a file of an artifact, and an export would remove it; move it "
                "away, or give another --out",
                Exit.CANTCREAT,
            )


def _publish(stage: Path, final: Path, scratch: Path) -> None:
    """Replace `final` by `stage`: a reader finds the old or the new artifact, and all of it.

    If the run is killed, the next one removes the stage or the old artifact. If the file system
    cannot exchange two directories, a kill between the two renames leaves no artifact.
    """
    for path in (*stage.iterdir(), stage):
        atomic_write.sync(path)
    if not os.path.lexists(final):
        stage.rename(final)
    elif not _exchanged(stage, final):
        old = final.rename(scratch / "old")
        try:
            stage.rename(final)
        except OSError:
            old.rename(final)
            raise


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def _exchanged(a: Path, b: Path) -> bool:
    """Exchange `a` and `b` in one step; False if the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    names = (os.fsencode(a), os.fsencode(b))
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _translated(error: Exception, out: Path, outcome: str) -> Exception:
    """Turn a file system's error, whichever library raised it, into one line; keep all others."""
    for cause in _causes(error):
        number = _full(cause)
        if number is None and cause is error and isinstance(cause, OSError):
            number = cause.errno
        if number is not None:
            where = _place(cause, out)
            return StartupError(f"{where}: {os.strerror(number)}; {outcome}", Exit.CANTCREAT)
    return error


def _place(error: BaseException, out: Path) -> Path:
    """Return the path that the error names, one below `out` if possible; `out` if it names none."""
    names = [getattr(error, key, None) for key in ("filename", "filename2")]
    paths = [Path(os.fsdecode(name)) for name in names if isinstance(name, str | bytes)]
    paths = [path for path in paths if path.name != str(path)]  # rmtree has bare names
    return next((path for path in paths if path.is_relative_to(out)), paths[0] if paths else out)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _full(error: BaseException) -> int | None:
    """Return which of _FULL it is. onnxruntime and torch write in C++: only their text says it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _FULL else None
    return next((number for number in _FULL if os.strerror(number) in str(error)), None)
