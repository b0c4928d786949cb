"""Steps in processes of their own: a job goes in, a result comes out, the memory goes back.

The graph and the reference are made by two processes. Each has its own versions of the libraries,
neither reads what the other has read, and the memory of one is free when the next begins.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedserve.errors import Exit, StartupError

Json = dict[str, Any]

# Where `make` puts optimum and the versions that it needs (requirements/optimum.in).
OPTIMUM = Path(sys.prefix) / "optimum"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Step:
    """A running step: `module`.run(job) in another process.

    With `path` that folder comes first on the process's path. Use it as a context manager: what
    still runs at its end is killed.
    """

    def __init__(
        self, module: str, job: Mapping[str, Any], scratch: Path, path: Path | None = None
    ) -> None:
        self._module = module
        self._errors = (scratch / f"{module}.stderr").open("w+b")
        command = [sys.executable, "-m", "export.steps", module, str(os.getpid())]
        self._process = subprocess.Popen(  # noqa: S603  # this interpreter, this package
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(scratch, path),
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode())
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it ended at once: `result` says how

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def result(self) -> Json:
        """Wait for what `run` returns, with "peak_bytes", the most memory the process had.

        Raises StartupError and OSError as `run` did; a process that died otherwise is one too.
        """
        assert self._process.stdout is not None
        output = self._process.stdout.read()
        status = self._process.wait()
        try:
            answer: Json = json.loads(output)
        except ValueError:
            raise self._died(status) from None
        if "error" in answer:
            raise StartupError(answer["error"], Exit(answer["status"]))
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]), answer["filename"])
        if "exception" in answer:
            raise RuntimeError(answer["exception"])
        return answer

    def _died(self, status: int) -> StartupError:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        if status == -signal.SIGKILL:
            what = "was killed; most likely the machine's memory ended"
        else:
            what = f"ended with status {status}: {(lines or ['nothing was said'])[-1]}"
        return StartupError(f"the process of {self._module} {what}", Exit.SOFTWARE)


def _environment(scratch: Path, path: Path | None) -> dict[str, str]:
    """This process's environment: offline, with `path` first, and with `scratch` for temporaries.

    In the system's own temporary directory a killed run would leave copies of the weights.
    """
    root = str(Path(__file__).resolve().parent.parent)
    paths = [str(path)] if path else []
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([*paths, root]),
        "TMPDIR": str(scratch),
    }


# -- in the other process ----------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Run one step: a job on standard input, its result or error as JSON on standard output."""
    module, parent = arguments
    _die_with(int(parent))
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)  # what libraries print is no result
        answer = _answer(module, json.load(sys.stdin))
        output.write(json.dumps(answer).encode())
    return 0


def _answer(module: str, job: Json) -> Json:
    try:
        result: Json = importlib.import_module(module).run(job)
    except StartupError as error:
        return {"error": str(error), "status": int(error.status)}
    except MemoryError as error:
        what = f"{module}: the machine's memory ended ({str(error) or 'no more was said'})"
        return {"error": what, "status": int(Exit.SOFTWARE)}
    except OSError as error:
        if error.errno is None:
            return {"exception": f"{module}: {type(error).__name__}: {error}"}
        return {"errno": error.errno, "filename": _name(error)}
    except Exception as error:  # whatever the libraries raise: a line is better than a traceback
        return {"exception": f"{module}: {type(error).__name__}: {error}"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**result, "peak_bytes": peak}


def _name(error: OSError) -> str | None:
    return None if error.filename is None else os.fsdecode(error.filename)


def _die_with(parent: int) -> None:
    """End with the process that waits for the result: its next run clears what is left."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except AttributeError:
        return  # not Linux: an orphan ends by itself
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
