"""`embedserve embed` whose file operations wait for whoever watches: killed at any one of them.

python -m tests.bulk.operated DESCRIPTOR INPUT OUTPUT [OPTIONS]
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT, environment
from tests.faults import syscalls

KILL = -1
SECONDS = 60.0  # no run here takes a tenth of it


def at(place: int, found: int) -> Callable[[int, str], int]:
    """Fail the operation of this number, or kill the process at it."""
    return lambda index, words: found if index == place else 0


def run(
    directory: Path, arguments: list[str | Path], decide: Callable[[int, str], int] | None
) -> tuple[int, list[str], str]:
    """Run it to its end; its status, its operations below `directory`, and its standard error.

    `decide` is asked before each operation: an errno fails it, KILL kills the process.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno()), *arguments],
            cwd=ROOT,
            env=environment(),
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    operations: list[str] = []

    def ask(index: int, words: str) -> int:
        operations.append(words)
        found = decide(index, words) if decide else 0
        if found == KILL:
            process.send_signal(signal.SIGKILL)
            process.wait(SECONDS)
        return max(0, found)

    with ours:
        watcher = threading.Thread(target=syscalls.watch, args=(ours, directory, ask))
        watcher.start()
        _, said = process.communicate(timeout=SECONDS)
        watcher.join(SECONDS)
    return process.returncode, operations, said


if __name__ == "__main__":
    syscalls.install(socket.socket(fileno=int(sys.argv[1])))
    from embedserve import cli

    cli.main(["embed", *sys.argv[2:]])
