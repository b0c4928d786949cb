"""Full and failing disks, SIGKILL, several at once: the old artifact, none, or a complete one."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from embedserve import artifact
from embedserve.errors import Exit, StartupError
from tests.faults import exports, syscalls
from tests.faults.exports import BulkJob, Run

watched = pytest.mark.skipif(syscalls.missing() is not None, reason=str(syscalls.missing()))

PROGRESS = re.compile(r"m: .* \(\d+\.\d s\)")
SEED = 20261124
PAGE = 4096
FULL, FAILING = errno.ENOSPC, errno.EIO


@dataclass(frozen=True, slots=True)
class Bench:
    """Two models to publish under one name, the first of them published, and how that is done."""

    job: BulkJob  # exports the second model into an `out` that is not there yet
    published: Path  # an `out` that has the first
    old: str  # fingerprints
    new: str
    operations: tuple[str, ...]  # of the second's export over the first
    seconds: float

    def over_the_old(self, directory: Path) -> BulkJob:
        """A job whose `out`, in the new `directory`, has the first model."""
        directory.mkdir()
        shutil.copytree(self.published, directory / "out")
        return replace(self.job, out=directory / "out")

    def into_nothing(self, directory: Path) -> BulkJob:
        """A job whose `out` is not there."""
        directory.mkdir()
        return replace(self.job, out=directory / "out")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = tmp_path_factory.mktemp("faults").resolve()
    (root / "models.toml").write_text("[models.m]\n")
    # Families whose graphs are made here: their step is forked, and not a new interpreter.
    first = exports.checkpoint(root / "first", "modernbert")
    second = exports.checkpoint(root / "second", "mpnet")
    published = root / "out"
    job = BulkJob(first, published, root / "models.toml")
    assert exports.start(job).finish() == 0
    trial = replace(job, source=second, out=root / "trial" / "out")
    shutil.copytree(published, trial.out)
    start = time.monotonic()
    run = exports.start(trial, None if syscalls.missing() else lambda index, words: 0)
    assert run.finish() == 0
    seconds = time.monotonic() - start
    old, new = (artifact.read(out / "m").fingerprint for out in (published, trial.out))
    return Bench(trial, published, old, new, tuple(run.operations), seconds)


def state(out: Path) -> str | None:
    """Return the fingerprint of the artifact in `out`, None without one; StartupError if mixed."""
    if not (out / "m").exists():
        return None
    manifest = artifact.read(out / "m")
    artifact.check_files(out / "m", manifest)
    return manifest.fingerprint


def check(run: Run, job: BulkJob, before: str | None, new: str, reason: str) -> None:
    """Refuse what an operator must never see after a run that could not write."""
    status, after = run.finish(), state(job.out)
    assert after in (before, new), "neither the artifact from before nor the new one"
    if status == 0:
        assert after == new
        return
    assert status == Exit.CANTCREAT, f"exit {status}: {run.said()}"
    line = error_line(run)
    assert reason in line or "onnxruntime cannot write" in line  # it does not say why
    assert str(job.out) in line
    assert ("nothing was published" in line) == (after == before)


def error_line(run: Run) -> str:
    """Return the one line that is no progress."""
    lines = [line for line in run.said().splitlines() if not PROGRESS.fullmatch(line)]
    assert len(lines) == 1, run.said()
    return lines[0]


def recover(job: BulkJob, new: str) -> None:
    """The next export, as usual, gives a complete artifact and leaves nothing else."""
    run = exports.start(replace(job, disk=None, force=False, new_interpreter=False))
    assert run.finish() == 0, run.said()
    assert state(job.out) == new
    inside = [name for name in names(job.out) if not name.startswith("m/")]
    assert inside == [".export", ".export/m", ".export/m/lock", ".export/m/record.json", "m"]


def names(out: Path) -> list[str]:
    """Return what is in `out`, in order; the stage of each run has a name of its own."""
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
    return [re.sub("work-[^/]*", "work", name) for name in found]


# -- ENOSPC and EIO at each operation ----------------------------------------------------------

Point = tuple[int, int, bool]  # which operation, its errno, whether all later ones fail too


def one_of_each_kind(operations: Iterable[str]) -> list[int]:
    """Return the middle operation of each kind: open, write, fsync, rename, ..."""
    places: dict[str, list[int]] = {}
    for index, words in enumerate(operations):
        places.setdefault(words.split()[0], []).append(index)
    return [indexes[len(indexes) // 2] for indexes in places.values()]


def fail(job: BulkJob, point: Point) -> Run:
    """Start `job` with a disk that fails at `point`."""
    place, number, lasting = point

    def decide(index: int, words: str) -> int:
        return number if index == place or (lasting and index > place) else 0

    return exports.start(job, decide)


def survives(jobs: Iterable[tuple[BulkJob, Point]], before: str | None, new: str) -> None:
    """Run each job with its fault, then once more without; name all that go wrong.

    Once more only for what no run before it has left.
    """
    wrong = []
    recovered = set()
    for job, point in jobs:
        run = fail(job, point)
        try:
            check(run, job, before, new, os.strerror(point[1]))
            assert len(run.operations) > point[0] or before is None, "not reached"
            left = (state(job.out), *names(job.out))
            if left not in recovered:
                recover(job, new)
            recovered.add(left)
        except (AssertionError, StartupError) as problem:
            place, number, lasting = point
            words = (run.operations[place:] or ["not reached"])[0]
            what = errno.errorcode[number] + (" from here on" if lasting else "")
            wrong.append(f"{place} {words}: {what}: {problem}")
        shutil.rmtree(job.out.parent)
    assert not wrong, "\n\n".join(wrong)


@watched
def test_a_failed_operation_of_each_kind(bench: Bench, tmp_path: Path) -> None:
    """Exit 73 and one line that names path and reason; what was published stays whole."""
    kinds = one_of_each_kind(bench.operations)
    points = [(k, (FULL, FAILING)[i % 2], False) for i, k in enumerate(kinds)]
    survives(((bench.over_the_old(tmp_path / "run"), p) for p in points), bench.old, bench.new)


@watched
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("number", "lasting"),
    [(FULL, False), (FAILING, False), (FAILING, True)],
    ids=["ENOSPC", "EIO", "EIO-from-then-on"],
)
def test_every_operation_that_fails(
    number: int, lasting: bool, bench: Bench, tmp_path: Path
) -> None:
    """The same for each write, open, rename, ... of an export over an older artifact."""
    points = [(place, number, lasting) for place in range(len(bench.operations))]
    survives(((bench.over_the_old(tmp_path / "run"), p) for p in points), bench.old, bench.new)


@watched
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_operation_that_fails_at_the_first_export(bench: Bench, tmp_path: Path) -> None:
    """The same where there is no artifact yet, nor a directory."""
    count = len(bench.operations)
    points = [(place, (FULL, FAILING)[place % 2], False) for place in range(count)]
    survives(((bench.into_nothing(tmp_path / "run"), p) for p in points), None, bench.new)


@watched
def test_a_new_interpreter_on_a_full_disk(bench: Bench, tmp_path: Path) -> None:
    """`python -m export` as it is typed: the same exit status and line."""
    job = replace(bench.over_the_old(tmp_path / "run"), new_interpreter=True)
    place = next(i for i, words in enumerate(bench.operations) if words.startswith("fsync"))
    run = fail(job, (place, FULL, False))
    assert run.finish() == Exit.CANTCREAT
    check(run, job, bench.old, bench.new, "No space left on device")


@watched
@pytest.mark.parametrize("number", [0, FAILING], ids=["whole", "EIO"])
def test_where_directories_cannot_be_exchanged(number: int, bench: Bench, tmp_path: Path) -> None:
    """Two renames in the place of one exchange; the old artifact comes back if the second fails."""

    def decide(index: int, words: str) -> int:
        if words.startswith("renameat2"):
            return errno.EINVAL
        staged = re.fullmatch(r"rename \.export/m/work-[^/]*/stage/m", words)
        return number if staged else 0

    job = bench.over_the_old(tmp_path / "run")
    run = exports.start(job, decide)
    check(run, job, bench.old, bench.new, os.strerror(number))
    assert state(job.out) == (bench.old if number else bench.new)
    assert any(words == "rename m" for words in run.operations)
    recover(job, bench.new)


# -- a file system that is really full ---------------------------------------------------------


def small_disks(bench: Bench, directory: Path, step: int) -> Iterator[tuple[int, int]]:
    """Export into file systems of growing size until three are large enough; (size, status)."""
    used = sum(-(-p.stat().st_size // PAGE) for p in bench.published.rglob("*") if p.is_file())
    size, enough = used * PAGE, 0
    while enough < 3:
        job = replace(bench.over_the_old(directory / "run"), disk=size)
        run = exports.start(job)
        status = run.finish()
        if run.said().startswith(exports.NO_DISK):
            pytest.skip(run.said())
        shutil.rmtree(job.out)
        assert job.on_disk.exists(), run.said()
        job.on_disk.rename(job.out)
        check(run, job, bench.old, bench.new, "No space left on device")
        recover(job, bench.new)
        shutil.rmtree(job.out.parent)
        enough += status == 0
        yield size, status
        size += step * PAGE


def test_a_small_file_system(bench: Bench, tmp_path: Path) -> None:
    """A tmpfs too small for a second artifact: 73 until it is large enough, then the new one."""
    statuses = [status for _, status in small_disks(bench, tmp_path, 96)]
    assert statuses[0] == Exit.CANTCREAT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_file_systems_of_every_size(bench: Bench, tmp_path: Path) -> None:
    """From what the old artifact takes to what an export needs, in steps of two pages."""
    statuses = [status for _, status in small_disks(bench, tmp_path, 2)]
    assert statuses == sorted(statuses, reverse=True)


# -- SIGKILL -----------------------------------------------------------------------------------


def held_at(job: BulkJob, place: int) -> tuple[Run, threading.Event, threading.Event]:
    """A run that stops at operation `place`: it says so by one event and goes on by the other."""
    reached, go = threading.Event(), threading.Event()

    def decide(index: int, words: str) -> int:
        if index == place:
            reached.set()
            go.wait(exports.SECONDS)
        return 0

    return exports.start(job, decide), reached, go


def killed_at(job: BulkJob, place: int) -> Run:
    """A run that is killed when it asks for operation `place`."""
    run, reached, go = held_at(job, place)
    assert reached.wait(exports.SECONDS)
    run.process.kill()
    go.set()
    return run


def killed_after(job: BulkJob, seconds: float) -> Run:
    """A run that is killed after so long, or ends before."""
    run = exports.start(job)
    run.process.join(seconds)
    run.process.kill()
    return run


def survives_kills(runs: Iterable[tuple[BulkJob, Run]], before: str | None, new: str) -> int:
    """Check what each run left, and that the next export makes it good; return the kills."""
    kills = 0
    for job, run in runs:
        status = run.finish()
        assert status in (0, -signal.SIGKILL), run.said()
        kills += status != 0
        assert state(job.out) in (before, new)
        recover(job, new)
        shutil.rmtree(job.out.parent)
    return kills


@watched
@pytest.mark.parametrize("count", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_operations(count: int, bench: Bench, tmp_path: Path) -> None:
    """SIGKILL at any write: the artifact from before or the new one; the next export is whole."""
    chance = random.Random(SEED)  # noqa: S311  # no secret
    places = chance.sample(range(len(bench.operations)), count)
    print(f"seed {SEED}: {places}")
    jobs = (bench.over_the_old(tmp_path / "run") for _ in places)
    runs = ((job, killed_at(job, place)) for job, place in zip(jobs, places, strict=True))
    assert survives_kills(runs, bench.old, bench.new) == count


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_random_times(bench: Bench, tmp_path: Path) -> None:
    """The same of `python -m export` as it is typed, at ten moments, most of them near its end."""
    seconds = timed(replace(bench.over_the_old(tmp_path / "timed"), new_interpreter=True))
    chance = random.Random(SEED)  # noqa: S311  # no secret
    moments = [seconds * (1 - chance.random() ** 2) for _ in range(10)]
    print(f"seed {SEED}: {moments} of {seconds:.1f} s")
    jobs = (replace(bench.over_the_old(tmp_path / "run"), new_interpreter=True) for _ in moments)
    runs = ((job, killed_after(job, t)) for job, t in zip(jobs, moments, strict=True))
    assert survives_kills(runs, bench.old, bench.new) > 0


@watched
def test_killed_at_the_first_export(bench: Bench, tmp_path: Path) -> None:
    """Where there was none there is none, until the one step that publishes."""
    place = next(i for i, words in enumerate(bench.operations) if words.startswith("rename"))
    job = bench.into_nothing(tmp_path / "run")
    run = killed_at(job, place)
    assert survives_kills([(job, run)], None, bench.new) == 1


def timed(job: BulkJob) -> float:
    """Seconds that a run takes."""
    start = time.monotonic()
    assert exports.start(job).finish() == 0
    return time.monotonic() - start


# -- beside others -----------------------------------------------------------------------------


@watched
def test_a_reader_finds_one_whole_artifact_at_any_time(bench: Bench, tmp_path: Path) -> None:
    """Before each operation of an export: the old artifact or the new one, once and for good."""
    job = bench.over_the_old(tmp_path / "run")
    found: list[str | None] = []

    def decide(index: int, words: str) -> int:
        found.append(state(job.out))
        return 0

    assert exports.start(job, decide).finish() == 0
    assert set(found) == {bench.old, bench.new}
    assert found == sorted(found, key=lambda which: which == bench.new)


AT_ONCE = {
    "two": (2, False),
    "two-forced": (2, True),
    "four": (4, False),
    "four-forced": (4, True),
}


@pytest.mark.parametrize(
    ("count", "force"),
    [
        pytest.param(*AT_ONCE[name], id=name, marks=[] if name == "two" else pytest.mark.slow)
        for name in AT_ONCE
    ],
)
def test_exports_of_one_model_at_once(
    count: int, force: bool, bench: Bench, tmp_path: Path
) -> None:
    """One makes it while the others wait, then keep it or, with --force, make it in turn."""
    job = replace(bench.over_the_old(tmp_path / "run"), force=force)
    outputs = [tmp_path / f"{i}.txt" for i in range(count)]
    runs = [exports.start(job, output=output) for output in outputs]
    assert [run.finish() for run in runs] == [0] * count
    said = [run.said() for run in runs]
    assert sum("published" in text for text in said) == (count if force else 1)
    assert sum("up to date, kept" in text for text in said) == (0 if force else count - 1)
    assert all(PROGRESS.fullmatch(line) for text in said for line in text.splitlines())
    recover(job, bench.new)


@watched
def test_a_waiting_export_takes_over_from_a_killed_one(bench: Bench, tmp_path: Path) -> None:
    """The lock goes with its holder: who waited makes the artifact, and clears what was left."""
    job = bench.over_the_old(tmp_path / "run")
    place = next(i for i, words in enumerate(bench.operations) if words.startswith("fsync"))
    first, reached, go = held_at(job, place)
    assert reached.wait(exports.SECONDS)
    output = tmp_path / "second"
    os.mkfifo(output)
    second = exports.start(job, output=output)
    said = ""
    with output.open(encoding="utf-8") as lines:
        for line in lines:
            said += line
            if "waiting for another export" in line:
                first.process.kill()
                go.set()
    assert first.finish() == -signal.SIGKILL
    assert second.finish() == 0
    assert "published" in said
    recover(job, bench.new)
