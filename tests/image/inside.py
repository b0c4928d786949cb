"""What the tests run inside the container, with the image's own Python: its text is passed by -c.

python -c TEXT files | libraries | process | embed REQUEST | ... Standard library alone; JSON out.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Of the runtime, not of the image.
OUTSIDE = ("/proc", "/sys", "/dev", "/artifacts")


def walk(directory: str = "/") -> Iterator[tuple[str, os.stat_result]]:
    """Each file, link and directory of the image."""
    for entry in sorted(os.scandir(directory), key=lambda e: e.name):
        if entry.path in OUTSIDE:
            continue
        yield entry.path, entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)


def files() -> list[tuple[str, int, int]]:
    """Path, mode and size of each; a file with several names has its size once."""
    seen: set[int] = set()
    found = []
    for path, status in walk():
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        found.append((path, status.st_mode, 0 if status.st_ino in seen else size))
        seen.add(status.st_ino)
    return found


def libraries() -> dict[str, str]:
    """Path -> why it cannot be loaded, of each shared object; "" where it can be."""
    loaded = {}
    for path, status in walk():
        if ".so" in path and stat.S_ISREG(status.st_mode) and is_elf(path):
            try:
                ctypes.CDLL(path)
                loaded[path] = ""
            except OSError as error:
                loaded[path] = str(error)
    return loaded


def is_elf(path: str) -> bool:
    """Whether it is machine code."""
    with Path(path).open("rb") as file:
        return file.read(4) == b"\x7fELF"


def process() -> dict[str, Any]:
    """Who process 1 is, what it may do, and what a process here can write to and reach."""
    fields = dict(line.split(":\t", 1) for line in Path("/proc/1/status").read_text().splitlines())
    environ = Path("/proc/1/environ").read_bytes().rstrip(b"\0").split(b"\0")
    return {
        "user": [int(number) for number in fields["Uid"].split()],
        "capabilities": {name: int(fields[name], 16) for name in fields if name.startswith("Cap")},
        "command": Path("/proc/1/cmdline").read_bytes().decode().rstrip("\0").split("\0"),
        "environment": dict(line.decode().split("=", 1) for line in environ),
        "read_only": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "written": [path for path, status in walk() if could_write(path, status)],
        "reached": reached(),
    }


def could_write(path: str, status: os.stat_result) -> bool:
    """Whether a file can be made in a directory."""
    if not stat.S_ISDIR(status.st_mode):
        return False
    name = f"{path}/written"
    try:
        Path(name).touch()
    except OSError:
        return False
    Path(name).unlink()
    return True


def reached() -> bool:
    """Whether there is a way out of the container's network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))  # an address of documents: nobody has it
        except OSError:
            return False
        return True


def ask(method: str, path: str, content: str | None = None) -> tuple[int, str]:
    """One request to the server."""
    connection = http.client.HTTPConnection("127.0.0.1", 5000, timeout=60)
    connection.request(method, path, content, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def statuses(*paths: str) -> dict[str, int]:
    """Path -> status of a GET."""
    return {path: ask("GET", path)[0] for path in paths}


def embed(content: str) -> dict[str, Any]:
    """POST /v1/embeddings: status and body."""
    status, text = ask("POST", "/v1/embeddings", content)
    return {"status": status, "body": json.loads(text)}


def embed_long(model: str, count: str) -> dict[str, Any]:
    """Seconds of work: so many texts, each past the model's limit, no two equal."""
    texts = [f"{number} " + "one word after the other " * 60 for number in range(int(count))]
    return embed(json.dumps({"model": model, "input": texts}))


def metric(name: str) -> float:
    """The sum of a metric's samples."""
    lines = ask("GET", "/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    print(json.dumps(globals()[verb](*rest)))
