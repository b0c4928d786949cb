"""What is on disk of a job: parts that are whole, and a job that is known again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.bulk.chunks import BadRow, Cut
from embedserve.bulk.job import BulkJob, Plan, Totals, identify
from embedserve.bulk.outputs import JsonLines
from embedserve.bulk.parts import Part, Parts
from embedserve.errors import Exit, StartupError

OUTPUT = JsonLines("embedding", 2, np.dtype("<f4"))
PLAN = Plan(
    input={"bytes": 1},
    model="m",
    fingerprint="f",
    prompt="",
    truncate="end",
    dimensions=2,
    dtype="float32",
    text_column="text",
    vector_column="embedding",
    keep=None,
    drop=[],
    on_error="skip",
    chunk_rows=4,
    output=".jsonl",
)


def part(number: int, payload: bytes = b"{}\n", bad: tuple[BadRow, ...] = ()) -> Part:
    """A part of one row."""
    cut = Cut(number, number, number + 1, number + 1, number + 2, 1)
    return Part(cut, 1, bad, 3, 0, len(payload), payload)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@settings(deadline=None)  # files
@given(
    payload=st.binary(),
    bad=st.lists(st.builds(BadRow, st.integers(1), st.text(), st.text())).map(tuple),
)
def test_parts(
    tmp_path_factory: pytest.TempPathFactory, payload: bytes, bad: tuple[BadRow, ...]
) -> None:
    """What was put is there again, in the order of the input."""
    parts = Parts(tmp_path_factory.mktemp("parts"))
    for number in (2, 0, 100_000_000):
        parts.put(part(number, payload, bad))
    found = [(head.cut.number, head.bad, file.read()) for head, file in parts.payloads()]
    assert found == [(number, bad, payload) for number in (0, 2, 100_000_000)]
    assert list(parts.cuts()) == [0, 2, 100_000_000]


def test_a_part_that_is_not_whole(tmp_path: Path) -> None:
    """What a disk lost of a part is noticed, and said."""
    parts = Parts(tmp_path)
    parts.put(part(0, b"0123456789"))
    path = tmp_path / "00000000.part"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StartupError, match="is damaged; remove it"):
        parts.cuts()


def test_half_written(tmp_path: Path) -> None:
    """What was being written when the process was killed is no part, and is removed."""
    parts = Parts(tmp_path)
    parts.put(part(0))
    (tmp_path / "00000001.part.tmp").write_bytes(b"half")
    assert list(parts.cuts()) == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["00000000.part"]


def test_finish(target: Path) -> None:
    """The parts are joined and gone; what is beside the output says what it is."""
    job = BulkJob(target, PLAN)
    assert job.finished() is None
    bad = BadRow(7, "invalid_json", "é")
    with job.open(overwrite=False):
        job.parts.put(part(1, b"b\n"))
        job.parts.put(part(0, b"a\n", (bad,)))
        totals = job.finish({}, OUTPUT)
    assert totals == Totals(rows=2, bad=1, tokens=6, truncated=0)
    assert target.read_bytes() == b"a\nb\n"
    assert json.loads(job.errors.read_text()) == bad._asdict()
    names = {path.name for path in target.parent.iterdir()}
    assert names == {"out.jsonl", "out.jsonl.job.json", "out.jsonl.errors.jsonl"}
    assert BulkJob(target, PLAN).finished() == totals
    assert BulkJob(target, replace(PLAN, fingerprint="g")).finished() is None


def test_finished_but_not_tidied(target: Path) -> None:
    """Killed while the parts were removed, the next run removes the rest."""
    job = BulkJob(target, PLAN)
    with job.open(overwrite=False):
        job.parts.put(part(0))
        job.finish({}, OUTPUT)
    job.directory.mkdir()
    (job.directory / "00000000.part").touch()
    assert BulkJob(target, PLAN).finished() is not None
    assert not job.directory.exists()


def test_altered_output(target: Path) -> None:
    """An output that somebody cut short is not taken for the finished one."""
    job = BulkJob(target, PLAN)
    with job.open(overwrite=False):
        job.parts.put(part(0))
        job.finish({}, OUTPUT)
    target.write_bytes(b"")
    assert BulkJob(target, PLAN).finished() is None


def test_an_output_that_is_there(target: Path) -> None:
    """Nothing is replaced that nobody asked to replace."""
    target.write_bytes(b"precious")
    with (
        pytest.raises(StartupError, match="--overwrite") as refused,
        BulkJob(target, PLAN).open(False),
    ):
        pass
    assert refused.value.status == Exit.CANTCREAT
    job = BulkJob(target, PLAN)
    with job.open(overwrite=True):
        job.parts.put(part(0, b"new\n"))
        assert target.read_bytes() == b"precious"
        job.finish({}, OUTPUT)
    assert target.read_bytes() == b"new\n"


@pytest.mark.parametrize("name", [name for name in asdict(PLAN) if name != "on_error"])
def test_another_job(target: Path, name: str) -> None:
    """Parts are never joined with those of another job; what differs is named."""
    job = BulkJob(target, PLAN)
    with job.open(overwrite=False):
        job.parts.put(part(0))
    other = BulkJob(target, replace(PLAN, **{name: "other"}))  # type: ignore[arg-type]
    with (
        pytest.raises(StartupError, match=rf"other settings: {name} was .*, is 'other'"),
        other.open(overwrite=False),
    ):
        pass
    with other.open(overwrite=True):
        assert other.parts.cuts() == {}
    with BulkJob(target, replace(PLAN, **{name: "other"})).open(overwrite=True):  # type: ignore[arg-type]
        pass


def test_after_stop(target: Path) -> None:
    """A job that ended at a bad row goes on with another way to treat it, and none else."""
    stopped = BulkJob(target, replace(PLAN, on_error="stop"))
    with stopped.open(overwrite=False):
        stopped.parts.put(part(0))
    with BulkJob(target, PLAN).open(overwrite=False):
        pass
    with (
        pytest.raises(StartupError, match="on_error was 'skip', is 'null'"),
        BulkJob(target, replace(PLAN, on_error="null")).open(overwrite=False),
    ):
        pass


def test_two_at_once(target: Path) -> None:
    """A second process does not work on the same parts."""
    with BulkJob(target, PLAN).open(overwrite=False):
        for overwrite in (False, True):
            with (
                pytest.raises(StartupError, match="another process") as refused,
                BulkJob(target, PLAN).open(overwrite),
            ):
                pass
            assert refused.value.status == Exit.UNAVAILABLE


def test_lost_record(target: Path) -> None:
    """Parts of nobody knows what are not joined."""
    job = BulkJob(target, PLAN)
    with job.open(overwrite=False):
        job.parts.put(part(0))
    (job.directory / "job.json").write_text("{")
    with pytest.raises(StartupError, match="missing or unreadable"), job.open(overwrite=False):
        pass


def test_identify(tmp_path: Path) -> None:
    """A file is another one when its size, its ends or its time change."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"a" * 3_000_000)
    first = identify(path)
    assert identify(path) == first
    status = path.stat()
    seen = [first]
    for place in (0, 2_999_999):
        data = bytearray(b"a" * 3_000_000)
        data[place] = 98
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        seen.append(identify(path))
    os.utime(path, ns=(0, 0))
    seen.append(identify(path))
    assert len({json.dumps(found) for found in seen}) == 4
