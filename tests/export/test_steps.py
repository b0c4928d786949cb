"""A step's result, its errors and its death reach the process that waits, and nothing stays."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedserve.errors import Exit, StartupError
from export.steps import Json, Nurseries

MODULE = "tests.export.step_that"


@pytest.fixture
def nurseries() -> Iterator[Nurseries]:
    """Nurseries of this test's own."""
    with Nurseries() as started:
        yield started


def run(nurseries: Nurseries, scratch: Path, job: Json) -> Json:
    """One step, from start to result."""
    with nurseries.start(MODULE, job, scratch) as step:
        return step.result()


def test_a_result_comes_back_with_the_peak_of_memory(nurseries: Nurseries, tmp_path: Path) -> None:
    """What `run` returns, and the most memory that its process had."""
    with nurseries.start(MODULE, {"allocate": 200_000_000}, tmp_path) as step:
        result = step.result()
    assert result["allocated"] == 200_000_000
    assert result["peak_bytes"] > 200_000_000


def test_steps_of_one_nursery_are_processes_of_their_own(
    nurseries: Nurseries, tmp_path: Path
) -> None:
    """Memory of one is not there in the next; libraries are loaded once."""
    results = []
    for _ in range(2):
        with nurseries.start(MODULE, {}, tmp_path) as step:
            results.append(step.result())
    assert results[0]["pid"] != results[1]["pid"]
    assert results[0]["loaded_by"] == results[1]["loaded_by"] != os.getpid()


def test_two_steps_run_at_once(nurseries: Nurseries, tmp_path: Path) -> None:
    """The first waits for what the second writes."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (
        nurseries.start(MODULE, {"read": str(pipe)}, tmp_path) as reading,
        nurseries.start(MODULE, {"write": str(pipe)}, tmp_path) as writing,
    ):
        assert writing.result()["written"]
        assert reading.result()["read"] == "written by the other"


def test_a_folder_comes_first_on_the_path(nurseries: Nurseries, tmp_path: Path) -> None:
    """A step with `path` imports from there."""
    (tmp_path / "only_there.py").write_text("VALUE = 7\n")
    with nurseries.start(MODULE, {"import": "only_there"}, tmp_path, tmp_path) as step:
        assert step.result()["value"] == 7


def test_a_refusal_is_the_same_here(nurseries: Nurseries, tmp_path: Path) -> None:
    """StartupError with its line and status."""
    with (
        nurseries.start(MODULE, {"refuse": "config.json: no"}, tmp_path) as step,
        pytest.raises(StartupError, match=r"config\.json: no") as caught,
    ):
        step.result()
    assert caught.value.status == Exit.DATAERR


def test_an_error_of_the_disk_keeps_number_and_path(nurseries: Nurseries, tmp_path: Path) -> None:
    """OSError with errno and file name, for the line about a full disk."""
    with (
        nurseries.start(MODULE, {"open": str(tmp_path / "none" / "x")}, tmp_path) as step,
        pytest.raises(OSError, match="none/x") as caught,
    ):
        step.result()
    assert caught.value.errno == errno.ENOENT


def test_an_unexpected_error_is_a_line(nurseries: Nurseries, tmp_path: Path) -> None:
    """RuntimeError that names the step and the error."""
    with (
        nurseries.start(MODULE, {"divide": 0}, tmp_path) as step,
        pytest.raises(RuntimeError, match="step_that: ZeroDivisionError"),
    ):
        step.result()


def test_a_killed_step_is_said_to_be(nurseries: Nurseries, tmp_path: Path) -> None:
    """Where the kernel ends it for want of memory, nothing else tells."""
    with (
        nurseries.start(MODULE, {"kill": int(signal.SIGKILL)}, tmp_path) as step,
        pytest.raises(StartupError, match="was killed; most likely memory"),
    ):
        step.result()


def test_a_crash_says_its_last_line(nurseries: Nurseries, tmp_path: Path) -> None:
    """A library that ends the process: status, and what it wrote."""
    with (
        nurseries.start(MODULE, {"exit": 7}, tmp_path) as step,
        pytest.raises(StartupError, match="ended with status 7: last words"),
    ):
        step.result()


def test_memory_that_ends_is_a_line(nurseries: Nurseries, tmp_path: Path) -> None:
    """MemoryError, as Python raises it."""
    with (
        nurseries.start(MODULE, {"memory": 1 << 62}, tmp_path) as step,
        pytest.raises(StartupError, match="memory ran out"),
    ):
        step.result()


def test_what_is_left_running_ends(nurseries: Nurseries, tmp_path: Path) -> None:
    """At the end of the `with` the step is gone: it closes the pipe that it holds open."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with nurseries.start(MODULE, {"hold": str(pipe)}, tmp_path):
        held = pipe.open()  # comes back when the step has opened its end
    with held:
        assert held.read() == ""


def test_a_step_forked_here_is_one_too(nurseries: Nurseries, tmp_path: Path) -> None:
    """Where its module is loaded, no nursery is started: results and errors are the same."""
    from tests.export import step_that

    with (
        nurseries.start(MODULE, {"refuse": "here"}, tmp_path) as step,
        pytest.raises(StartupError, match="here"),
    ):
        step.result()
    with nurseries.start(MODULE, {}, tmp_path) as step:
        assert step.result()["loaded_by"] == os.getpid() == step_that.LOADED_BY[0]


def test_no_module_of_the_working_directory(
    nurseries: Nurseries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies where an export is started is not imported by its steps."""
    for name in ("ctypes", "resource", "json", "tempfile", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open('{tmp_path}/ran', 'a').write('{name} ')")
    monkeypatch.chdir(tmp_path)
    assert run(nurseries, tmp_path, {"allocate": 1})["allocated"] == 1
    assert not (tmp_path / "ran").exists()
