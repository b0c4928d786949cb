"""It talks to nobody, writes nothing, runs nothing: seen from outside, and where it could not."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import programs
from tests.faults import confined
from tests.faults.everything import ask_everything
from tests.faults.serving import (
    PYTHON,
    ROOT,
    SECONDS,
    Served,
    address_in,
    command,
    environment,
    kill,
    until,
)

SERVER = ("embedserve",)
ALTERED = "tests.faults.altered"

OPENED = "open openat openat2 creat"
CHANGED = (
    "mkdir mkdirat mknod mknodat rename renameat renameat2 link linkat symlink symlinkat unlink "
    "unlinkat rmdir truncate chmod fchmodat chown lchown fchownat utime utimes utimensat mount"
)
SENT = "connect sendto sendmsg sendmmsg"
STARTED = "execve execveat fork vfork clone clone3"
CALLS = ",".join(f"{OPENED} {CHANGED} {SENT} {STARTED} socket".split())
# The C library asks its cache who the user is, where HOME does not say it.
NAME_CACHE = '"/var/run/nscd/socket"'


def breaches(trace: str) -> Iterator[str]:
    """Each line of strace's that a server has no business with."""
    programs, sockets = 0, 0
    for name, line in re.findall(r"^\d+ +(\w+)(\(.*)$", trace, re.MULTILINE):
        programs += name == "execve"
        sockets += name == "socket" and "AF_UNIX" not in line
        wrong = (
            (name in OPENED.split() and re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", line))
            or name in ("creat", *CHANGED.split())
            or (name in SENT.split() and "sa_family" in line and NAME_CACHE not in line)
            or (name in STARTED.split() and name != "execve" and "CLONE_THREAD" not in line)
            or (name == "execve" and programs > 1)
            or (name == "socket" and ("SOCK_STREAM" not in line or sockets > 1))
        )
        if wrong:
            yield name + line


def traced(artifacts: Path, directory: Path, runner: Sequence[str]) -> str:
    """All of CALLS from the start of a server until its end; everything is asked of it between.

    Python keeps no compiled files of what it imports: that would be its own writing.
    """
    trace, log = directory / "trace", directory / "log"
    watch = ("strace", "-D", "-f", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", str(trace))
    env = {**environment(), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [*watch, *command(artifacts, "--port", "0", runner=runner)]
    with log.open("wb") as stderr:
        process = subprocess.Popen(words, stderr=stderr, env=env, cwd=ROOT)
    try:
        until(lambda: process.poll() is not None or b"serving " in log.read_bytes())
        if process.poll() is None:
            server = Served(process, address_in(log, process), log)
            ask_everything(*server.address)
            assert server.stop() == 0
        end = f"\n{process.pid} +++ exited with {process.returncode} +++"
        until(lambda: re.sub(" +", " ", end) in re.sub(" +", " ", trace.read_text()))
    finally:
        kill(process)
    return trace.read_text()


@pytest.fixture(scope="module")
def _strace(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where a process may not watch another."""
    programs.need("strace", package="strace")
    out = tmp_path_factory.mktemp("strace") / "trace"
    done = subprocess.run(
        ["strace", "-D", "-f", "--seccomp-bpf", "-o", out, "true"], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"strace is forbidden here: {done.stderr.decode().strip()}")


@pytest.mark.usefixtures("_strace")
class TestWatched:
    """Its system calls, from exec to exit."""

    def test_nothing_but_its_own(self, tiny_artifacts: Path, tmp_path: Path) -> None:
        """No connection out, no datagram, no telemetry; no file written, made, moved or opened
        for writing; no other program, whatever is asked of it.
        """
        trace = traced(tiny_artifacts, tmp_path, SERVER)
        assert list(breaches(trace)) == []
        assert trace.count("execve(") == 1
        assert "model.onnx" in trace  # it is this server that was watched

    @pytest.mark.parametrize(
        ("misdeed", "seen"),
        [
            ("udp", "sendto"),
            ("tcp", "connect"),
            ("file", "openat"),
            ("executed", "execve"),
        ],
    )
    def test_a_misdeed_is_seen(
        self, tiny_artifacts: Path, tmp_path: Path, misdeed: str, seen: str
    ) -> None:
        """The same check finds a build that does what this one does not."""
        artifacts = shutil.copytree(tiny_artifacts.parent, tmp_path / "copy") / "artifacts"
        found = list(breaches(traced(artifacts, tmp_path, (ALTERED, misdeed))))
        assert any(line.startswith(seen) for line in found), found


class TestConfined:
    """Read-only files, no network but its loopback, no environment at all."""

    def test_it_starts_and_serves(self, tiny_artifacts: Path) -> None:
        """It needs nothing to write to, nobody to reach, no HOME, no TMPDIR."""
        done = self._confined(tiny_artifacts, SERVER)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize(
        ("misdeed", "said"),
        [
            ("udp", "Network is unreachable"),
            ("tcp", "Network is unreachable"),
            ("file", "Read-only file system"),
        ],
    )
    def test_a_misdeed_is_stopped(self, tiny_artifacts: Path, misdeed: str, said: str) -> None:
        """The same confinement stops a build that does what this one does not."""
        done = self._confined(tiny_artifacts, (ALTERED, misdeed))
        assert done.returncode == 1
        assert said in done.stderr

    def _confined(self, artifacts: Path, runner: Sequence[str]) -> subprocess.CompletedProcess[str]:
        words = command(artifacts, "--port", "0", runner=runner)
        done = subprocess.run(
            [PYTHON, "-m", "tests.faults.confined", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            env=environment(),
            cwd=ROOT,
        )
        if done.returncode == confined.UNABLE:
            pytest.skip(f"no namespaces here: {done.stderr.strip()}")
        return done
