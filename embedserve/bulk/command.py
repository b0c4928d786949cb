"""embedserve embed: a file of texts to a file of vectors, on this machine or on a Ray cluster."""

from __future__ import annotations

import contextlib
import functools
import itertools
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from embedserve import artifact
from embedserve.artifact import Manifest
from embedserve.bulk.chunks import Cut, Reader, Selection
from embedserve.bulk.inputs import open_input
from embedserve.bulk.job import BulkJob, Plan, Totals, identify
from embedserve.bulk.local import Local
from embedserve.bulk.maker import Maker
from embedserve.bulk.outputs import check_output
from embedserve.bulk.parts import Part
from embedserve.bulk.pipeline import How, Pipeline
from embedserve.bulk.progress import Progress, State, clock_time
from embedserve.bulk.ray_cluster import EmbedTask, InputFile, open_cluster
from embedserve.config.models_toml import ModelSpec
from embedserve.config.settings import Settings
from embedserve.errors import Exit, RequestError, StartupError
from embedserve.escapes import escaped
from embedserve.model import loading, providers
from embedserve.model.providers import PROVIDERS
from embedserve.model.request import Truncate, components, prompt
from embedserve.system import host

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says about one job."""

    source: Path
    target: Path
    selection: Selection
    dimensions: int | None
    chunk_rows: int
    prompt_name: str | None
    dtype: str
    truncate: Truncate
    on_error: str | None
    overwrite: bool
    ray: str | None
    artifacts_by: str


def options(
    source: str,
    target: str,
    text_column: str,
    vector_column: str,
    keep: list[str] | None,
    drop: list[str],
    dimensions: int | None,
    chunk_rows: int,
    **others: Any,
) -> Options:
    """Check the parsed arguments as far as possible without the files. StartupError (64)."""
    if chunk_rows < 1:
        raise StartupError(f"--chunk-rows {chunk_rows}: must be 1 or more", Exit.USAGE)
    selection = Selection(
        text_column, vector_column, None if keep is None else tuple(keep), tuple(drop)
    )
    return Options(Path(source), Path(target), selection, dimensions, chunk_rows, **others)


class Runner(Protocol):
    """Embeds chunks. Counts texts and tokens so far; `place` is how much of open chunks is done."""

    @property
    def texts(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def place(self) -> float: ...

    def parts(self, cuts: Iterable[Cut]) -> Generator[Part, None, None]: ...

    def close(self) -> None: ...


class StoppedError(BaseException):
    """A signal ended the command. Finished chunks are on disk."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def embed(options: Options, spec: ModelSpec, directory: Path, settings: Settings) -> int:
    """Make options.target, or resume it. Returns the exit status."""
    begin = time.monotonic()
    try:
        with _signals(), _disk(options.target):
            job, totals, rate = _embed(options, spec, directory, settings)
    except StoppedError as stopped:
        name = signal.Signals(stopped.number).name
        print(
            f"embedserve: stopped by {name}; run the same command again to resume: finished "
            f"chunks of {escaped(str(options.target))} are kept",
            file=sys.stderr,
        )
        return 128 + stopped.number
    took = f"{clock_time(time.monotonic() - begin)}{rate}"
    print(escaped(f"{job.target}: {_shown(totals, job)}; {took}"))
    return 0


def _embed(
    options: Options, spec: ModelSpec, directory: Path, settings: Settings
) -> tuple[BulkJob, Totals, str]:
    """Returns the job, the totals of its output, and how fast it was made, as text."""
    form = check_output(options.target)
    reader = open_input(options.source, options.selection, options.chunk_rows)
    manifest = artifact.read(directory)
    how = How(
        _asked(prompt, manifest, options.prompt_name, "--prompt-name"),
        options.truncate,
        _asked(components, manifest, options.dimensions, "--dimensions"),
    )
    plan = _plan(options, manifest, how, options.on_error or form.on_error)
    dtype = np.dtype(options.dtype).newbyteorder("<")
    maker = Maker(form(options.selection.vector, how.dimensions, dtype), dtype, plan.on_error)
    job = BulkJob(options.target, plan)
    job.check_source(options.source)
    totals = job.finished()
    if totals is not None:
        return job, totals, ", already there, made by this same job"
    if options.ray is None:
        open_runner = _local(spec, directory, settings, how, reader, maker)
    else:
        task = EmbedTask(spec, manifest.fingerprint, how, maker, settings)
        open_runner = _cluster(options, directory, task)
    with job.open(options.overwrite):
        rate = _run(job, reader, open_runner)
        if identify(options.source) != plan.input:
            raise StartupError(
                f"{options.source}: changed while it was read; start over with --overwrite",
                Exit.DATAERR,
            )
        return job, job.finish(_facts(plan), maker.output), rate


def _run(job: BulkJob, reader: Reader, open_runner: Callable[[], Runner]) -> str:
    """Embed the unfinished chunks; return how fast that was, as text."""
    done = job.parts.cuts()
    missing = _missing(reader, done)
    first = next(missing, None)
    if first is None:
        return ""
    finished = sum(cut.end - cut.start for cut in done.values())
    with contextlib.closing(open_runner()) as runner:
        begin = time.monotonic()

        def state() -> State:
            return State(finished + runner.place, reader.end, runner.texts, runner.tokens)

        parts = contextlib.closing(runner.parts(itertools.chain([first], missing)))
        with Progress(state, sys.stderr) as progress, parts as found:
            for part in found:
                progress.report(part.bad)
                if part.bad and job.plan.on_error == "stop":
                    row = part.bad[0]
                    raise StartupError(
                        f"line {row.line}: {row.code}: {row.message}; finished chunks are kept in "
                        f"{job.directory}",
                        Exit.DATAERR,
                    )
                job.parts.put(part)
                finished += part.cut.end - part.cut.start
        seconds = time.monotonic() - begin
        return f", {runner.texts / seconds:,.0f} texts/s, {runner.tokens / seconds:,.0f} tokens/s"


def _missing(reader: Reader, done: dict[int, Cut]) -> Iterator[Cut]:
    """The unfinished chunks. Finished ones at the start of the input are not read again."""
    last = None
    while (number := last.number + 1 if last else 0) in done:
        last = done[number]
    for cut in reader.cuts(last):
        if cut.number not in done:
            yield cut
        elif done[cut.number] != cut:
            raise StartupError(
                f"chunk {cut.number} was {done[cut.number]}, is now {cut}", Exit.SOFTWARE
            )


def _local(
    spec: ModelSpec, directory: Path, settings: Settings, how: How, reader: Reader, maker: Maker
) -> Callable[[], Runner]:
    """Return what opens the model on all cores of this process."""

    def opened() -> Local:
        cores = host.read().cores.value
        threads = providers.tokenizing(PROVIDERS[settings.provider], cores)
        model, _ = loading.load_model(spec, directory, settings.provider, tokenizing=threads)
        lanes = providers.lanes(settings, cores)
        tokens = providers.tokens_per_pass(settings)
        return Local(Pipeline(model, how, lanes, tokens), reader, maker)

    return opened


def _cluster(options: Options, directory: Path, task: EmbedTask) -> Callable[[], Runner]:
    """Return what opens the model on the nodes of a Ray cluster."""
    assert options.ray is not None
    source = InputFile(options.source.absolute(), options.selection, options.chunk_rows)
    return functools.partial(
        open_cluster, options.ray, options.artifacts_by, directory.absolute(), source, task
    )


def _asked(ask: Callable[..., T], manifest: Manifest, value: object, flag: str) -> T:
    """Check a flag's value against the model. StartupError (64) names the flag."""
    try:
        return ask(manifest, value)
    except RequestError as error:
        message = error.message.removeprefix(str(error.param))
        raise StartupError(f"{flag}{message}", Exit.USAGE) from None


def _plan(options: Options, manifest: Manifest, how: How, on_error: str) -> Plan:
    chosen = options.selection
    return Plan(
        input=identify(options.source),
        model=manifest.name,
        fingerprint=manifest.fingerprint,
        prompt=how.prompt,
        truncate=how.truncate,
        dimensions=how.dimensions,
        dtype=options.dtype,
        text_column=chosen.text,
        vector_column=chosen.vector,
        keep=None if chosen.keep is None else list(chosen.keep),
        drop=list(chosen.drop),
        on_error=on_error,
        chunk_rows=options.chunk_rows,
        output=options.target.suffix.lower(),
    )


def _facts(plan: Plan) -> dict[str, object]:
    """How the vectors were made, for formats that can store it."""
    names = ("model", "fingerprint", "prompt", "truncate", "dimensions", "dtype")
    return {name: getattr(plan, name) for name in names}


def _shown(totals: Totals, job: BulkJob) -> str:
    text = f"{totals.rows:,} rows of {job.plan.dimensions} {job.plan.dtype}"
    if totals.truncated:
        text += f", {totals.truncated:,} texts cut to the model's limit"
    if totals.bad:
        text += f", {totals.bad:,} bad rows ({job.errors})"
    return text


@contextlib.contextmanager
def _disk(target: Path) -> Iterator[None]:
    """Turn errors of the disk and lack of memory into one line. Finished chunks stay."""
    kept = "finished chunks are kept: run the same command again"
    try:
        yield
    except OSError as error:
        raise StartupError(
            f"{error.filename or target}: {error.strerror}; {kept}", Exit.CANTCREAT
        ) from error
    except MemoryError as error:
        raise StartupError(f"{target}: out of memory; {kept}", Exit.UNAVAILABLE) from error


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise StoppedError; a second one has its default effect."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise StoppedError(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
