"""Processes that export, forked with the libraries loaded: half a second each and not five."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import small_disk, syscalls

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.faults.loaded"])

SECONDS = 120.0  # no run here takes a tenth of it
NO_DISK = "no file system of its own: "


@dataclass(frozen=True, slots=True)
class BulkJob:
    """One run of `python -m export m` into `out`.

    With `disk` the run sees `out` copied to a file system of so many bytes.
    """

    source: Path
    out: Path
    models: Path
    force: bool = False
    new_interpreter: bool = False
    disk: int | None = None

    @property
    def arguments(self) -> list[str]:
        paths = {"--models": self.models, "--out": self.out, "--from": self.source}
        flags = [str(part) for pair in paths.items() for part in pair]
        return ["m", *flags, *(["--force"] if self.force else [])]

    @property
    def on_disk(self) -> Path:
        """What `out` was at the end, on the file system that is gone."""
        return self.out.with_name("on-disk")

    @property
    def output(self) -> Path:
        return self.out.with_name("stderr.txt")


@dataclass(slots=True)
class Run:
    """A running job: its operations so far, and its end."""

    process: Any
    output: Path
    operations: list[str] = field(default_factory=list)
    watcher: threading.Thread | None = None
    problems: list[BaseException] = field(default_factory=list)

    def finish(self) -> int:
        """Wait for the end; return the exit status, -9 after SIGKILL."""
        self.process.join(SECONDS)
        assert self.process.exitcode is not None, f"it hangs: {self.said()}"
        if self.watcher is not None:
            self.watcher.join(SECONDS)
        if self.problems:
            raise self.problems[0]
        return int(self.process.exitcode)

    def said(self) -> str:
        """What it wrote on standard error."""
        return self.output.read_text(encoding="utf-8")


def start(job: BulkJob, decide: syscalls.Decide | None = None, output: Path | None = None) -> Run:
    """Start a run; with `decide`, each file operation below its `out` is asked about first."""
    output = output or job.output
    if decide is None:
        return Run(_forked(_export, job, output, None), output)
    ours, theirs = socket.socketpair()
    with theirs:
        run = Run(_forked(_export, job, output, theirs), output)
    run.watcher = threading.Thread(target=_watch, args=(run, ours, job.out, decide))
    run.watcher.start()
    return run


def checkpoint(directory: Path, family: str) -> Path:
    """Write a small checkpoint of tests/export/checkpoints.py."""
    process = _forked(_checkpoint, directory, family)
    process.join(SECONDS)
    assert process.exitcode == 0
    return directory


def _forked(target: Any, *arguments: object) -> Any:
    process = _FORKS.Process(target=target, args=arguments)
    process.start()
    return process


def _watch(run: Run, link: socket.socket, directory: Path, decide: syscalls.Decide) -> None:
    def ask(index: int, words: str) -> int:
        run.operations.append(words)
        return decide(index, words)

    try:
        with link:
            syscalls.watch(link, directory, ask)
    except BaseException as problem:  # for whoever waits
        run.problems.append(problem)
        run.process.kill()


# -- in the new process ------------------------------------------------------------------------


def _export(job: BulkJob, output: Path, link: socket.socket | None) -> None:
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if link is not None:
        syscalls.install(link)
    if job.new_interpreter:
        command = [sys.executable, "-m", "export", *job.arguments]
        os.execv(sys.executable, command)  # noqa: S606  # the project's own command
    if job.disk is None:
        sys.exit(_main(job))
    sys.exit(_on_a_disk(job, job.disk))


def _main(job: BulkJob) -> int:
    from export import cli

    return cli.main(job.arguments)


def _on_a_disk(job: BulkJob, size: int) -> int:
    """Export into a file system that ends with this process; what it holds is copied back."""
    before = job.out.rename(job.out.with_name("before"))
    job.out.mkdir()
    try:
        small_disk.mount(job.out, size)
    except OSError as error:
        print(f"{NO_DISK}{error}", file=sys.stderr)
        return 1
    shutil.copytree(before, job.out, dirs_exist_ok=True)
    status = _main(job)
    shutil.copytree(job.out, job.on_disk)
    return status


def _checkpoint(directory: Path, family: str) -> None:
    from tests.export import checkpoints

    checkpoints.checkpoint(directory, getattr(checkpoints, family))
