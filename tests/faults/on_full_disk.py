"""Run a command whose standard error is a file on a full disk: DIRECTORY COMMAND …

Exit status UNABLE where this host gives a process no file system of its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from tests.faults import small_disk

UNABLE = 75  # EX_TEMPFAIL
PAGE = 4096

if __name__ == "__main__":
    directory, *command = sys.argv[1:]
    try:
        small_disk.mount(Path(directory), 4 * PAGE)
    except OSError as error:
        print(f"no file system of its own: {error}", file=sys.stderr)
        sys.exit(UNABLE)
    log = os.open(Path(directory) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with contextlib.suppress(OSError):  # ENOSPC
        while os.write(log, b"." * PAGE):
            pass
    os.dup2(log, 2)
    os.execv(command[0], command)  # noqa: S606  # the tests' own command
