"""Runs steps in processes of their own: a job goes in, a result comes out, the memory is freed.

Two processes make the graph and the reference. Each has its own versions of the libraries, each
reads the files itself, and the memory of one is free when the next begins.

A nursery is a process that has loaded the libraries and forks a process for each step: loading
takes seconds, and one command may export many models.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from embedserve.errors import Exit, StartupError

Json = dict[str, Any]

# Where `make` puts optimum and the versions that it needs (requirements/optimum.in).
OPTIMUM = Path(sys.prefix) / "optimum"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_MOST_BYTES = 16 << 20  # of a request: texts and paths


class StepProcess:
    """A running step. Use it as a context manager: a step that still runs at the end is killed."""

    def __init__(
        self, module: str, answer: BinaryIO, errors: BinaryIO, child: int | None = None
    ) -> None:
        self._module = module
        self._answer = answer
        self._errors = errors
        self._child = child  # to be waited for

    def __enter__(self) -> StepProcess:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._answer.closed:
            with self._answer:
                if pid := self._answer.readline():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                    self._answer.read()  # ends when the process has
        if self._child is not None:
            os.waitpid(self._child, 0)
        self._errors.close()

    def result(self) -> Json:
        """Wait for what the module's `run` returns, with "peak_bytes", its peak memory.

        Raises StartupError and OSError as `run` did, RuntimeError for its other exceptions, and
        StartupError if the process died.
        """
        with self._answer:
            _pid, *lines = self._answer.read().splitlines() or [b""]
        if len(lines) < 2:
            raise self._died(int(lines[0]) if lines else 1)
        answer: Json = json.loads(lines[0])
        if "error" in answer:
            raise StartupError(answer["error"], Exit(answer["status"]))
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]), answer["filename"])
        if "exception" in answer:
            raise RuntimeError(answer["exception"])
        return answer

    def _died(self, status: int) -> StartupError:
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        if status == -signal.SIGKILL:
            return StartupError(
                f"the process of {self._module} was killed; most likely memory ran out",
                Exit.SOFTWARE,
            )
        last = (said or ["no message"])[-1]
        return StartupError(
            f"the process of {self._module} ended with status {status}: {last}", Exit.SOFTWARE
        )


class Nurseries:
    """Starts steps. A context manager: the nurseries end with it."""

    def __init__(self) -> None:
        self._nurseries: dict[Path | None, tuple[subprocess.Popen[bytes], socket.socket]] = {}

    def __enter__(self) -> Nurseries:
        return self

    def __exit__(self, *error: object) -> None:
        for process, link in self._nurseries.values():
            link.close()
            process.kill()
            process.wait()
        self._nurseries.clear()

    def start(
        self, module: str, job: Mapping[str, Any], scratch: Path, path: Path | None = None
    ) -> StepProcess:
        """Run `module`.run(job) in another process, whose temporary files go to `scratch`.

        With `path`, it looks for packages in that folder first.
        """
        errors = (scratch / f"{module}.stderr").open("w+b")
        ours, theirs = os.pipe()
        request = {"module": module, "job": dict(job), "scratch": str(scratch)}
        child = None
        try:
            if path is None and module in sys.modules:  # loaded here: nothing to wait for
                child = _fork(request, theirs, errors.fileno())
            else:
                link = self._link(path)
                message = json.dumps(request).encode()
                socket.send_fds(link, [message], [theirs, errors.fileno()])
        finally:
            os.close(theirs)
        return StepProcess(module, os.fdopen(ours, "rb"), errors, child)

    def _link(self, path: Path | None) -> socket.socket:
        """The socket to the nursery of `path`, which is started if it does not run."""
        process, link = self._nurseries.get(path, (None, None))
        if process is None or link is None or process.poll() is not None:
            link, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for end in (link, other):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_BYTES)
            with other:
                process = subprocess.Popen(  # noqa: S603  # this interpreter, this package
                    # -P: no module of the working directory; PYTHONPATH says where they are.
                    [sys.executable, "-P", "-m", __name__, str(other.fileno()), str(os.getpid())],
                    pass_fds=[other.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=_environment(path),
                )
            self._nurseries[path] = process, link
        return link


def _environment(path: Path | None) -> dict[str, str]:
    """This process's environment: offline, with `path` first."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [str(path)] if path else []
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([*paths, root]),
    }


# -- in a nursery ------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Fork a process for each request until the socket closes. Arguments: socket, parent's pid."""
    link = socket.socket(fileno=int(arguments[0]))
    _die_with(int(arguments[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the exporting process ends its steps
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes forked here
    while True:
        message, descriptors, _, _ = socket.recv_fds(link, _MOST_BYTES, 2)
        if not message:
            return 0
        request = json.loads(message)
        _fork(request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _fork(request: Json, answer: int, errors: int) -> int:
    """Fork a keeper process, which runs the request's step in another and reports how it ended.

    Written to `answer`: the step's pid, its result as a line of JSON, if any, and its exit status.
    Returns the keeper's pid.
    """
    parent = os.getpid()
    problem = _load(request["module"])
    if (keeper := os.fork()) == 0:
        try:
            _keep(request, answer, errors, problem, parent)
        finally:
            os._exit(0)
    return keeper


def _load(module: str) -> str | None:
    """Load a step's libraries before the fork, for later steps too; return why it failed."""
    try:
        importlib.import_module(module).load()
    except Exception as error:  # a broken environment: each step says so
        return f"{module}: {type(error).__name__}: {error}"
    return None


def _keep(request: Json, answer: int, errors: int, problem: str | None, parent: int) -> None:
    """Run the step in another process, and write its exit status when it has ended."""
    _die_with(parent)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    keeper = os.getpid()
    if (step := os.fork()) == 0:
        _die_with(keeper)
        os.dup2(errors, 1)  # what libraries print is not the result
        os.dup2(errors, 2)
        os.write(answer, b"%d\n" % os.getpid())
        value = {"exception": problem} if problem else _answer(request)
        with os.fdopen(answer, "wb") as file:
            file.write(json.dumps(value).encode() + b"\n")
        os._exit(0)
    _, status = os.waitpid(step, 0)
    os.write(answer, b"%d\n" % os.waitstatus_to_exitcode(status))


def _answer(request: Json) -> Json:
    module = request["module"]
    os.environ["TMPDIR"] = request["scratch"]  # elsewhere a killed run would leave copies
    tempfile.tempdir = None
    try:
        result: Json = importlib.import_module(module).run(request["job"])
    except StartupError as error:
        return {"error": str(error), "status": int(error.status)}
    except MemoryError as error:
        what = f"{module}: memory ran out ({str(error) or 'no details'})"
        return {"error": what, "status": int(Exit.SOFTWARE)}
    except OSError as error:
        if error.errno is None:
            return {"exception": f"{module}: {type(error).__name__}: {error}"}
        name = None if error.filename is None else os.fsdecode(error.filename)
        return {"errno": error.errno, "filename": name}
    except Exception as error:  # whatever the libraries raise: a line is better than a traceback
        return {"exception": f"{module}: {type(error).__name__}: {error}"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**result, "peak_bytes": peak}


def _die_with(parent: int) -> None:
    """End when the process `parent` ends; the next run removes what is left."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except AttributeError:
        return  # not Linux: an orphan ends by itself
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
