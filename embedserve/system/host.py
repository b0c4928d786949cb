"""What this process may use: cores, memory, instruction sets, each with its origin."""

from __future__ import annotations

import math
import os
import platform
import re
import resource
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

# Extensions that onnxruntime picks its kernels by, as Linux names them: x86-64, then aarch64.
INSTRUCTIONS = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
# A controller's files by cgroup version. For cpu: the quota and the period, in microseconds.
_CPU = {"v2": ("cpu.max",), "v1": ("cpu.cfs_quota_us", "cpu.cfs_period_us")}
_MEMORY = {"v2": ("memory.max",), "v1": ("memory.limit_in_bytes",)}
# cgroup v1 writes "no limit" as the largest multiple of a page below 2**63.
_UNLIMITED = 2**60


class Known(NamedTuple, Generic[T]):
    """A value and where it was found."""

    value: T
    origin: str


@dataclass(frozen=True, slots=True)
class Host:
    """What this process may use. None: no limit exists, or none could be read.

    `affinity` and `quota` are in cores, `memory` in bytes; `descriptors` may be open at once.
    """

    affinity: Known[int]
    quota: Known[float] | None
    memory: Known[int] | None
    descriptors: Known[int] | None
    architecture: Known[str]
    cpu: Known[str]
    instructions: Known[tuple[str, ...]] | None

    @property
    def cores(self) -> Known[int]:
        """How many threads may compute at once; the default number of lanes on CPUs.

        Rounded down: with more threads than the quota allows, the kernel stops all of them for the
        rest of each period (100 ms), and every request waits for that.
        """
        if self.quota is None or self.quota.value >= self.affinity.value:
            return self.affinity
        return Known(max(1, math.floor(self.quota.value)), self.quota.origin)


def read(root: Path = Path("/")) -> Host:
    """Read the kernel's limits and its files below `root`; an unreadable file sets no limit."""
    tree = _Tree(root)
    flags = tree.cpuinfo("flags", "Features")
    instructions = tuple(name for name in INSTRUCTIONS if name in flags.split())
    return Host(
        affinity=Known(len(os.sched_getaffinity(0)), "affinity"),
        quota=_least(tree.limits("cpu", _CPU, _cores)),
        memory=_least(_memory(tree)),
        descriptors=_least(_resource("RLIMIT_NOFILE")),
        architecture=Known(platform.machine(), "uname"),
        cpu=Known(tree.cpuinfo("model name") or "unknown", "/proc/cpuinfo"),
        instructions=Known(instructions, "/proc/cpuinfo") if flags else None,
    )


def resident(root: Path = Path("/")) -> int:
    """Return the resident bytes of this process; 0 if the system does not say."""
    words = _Tree(root).text("/proc/self/statm").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else 0


def _memory(tree: _Tree) -> Iterator[Known[int]]:
    yield from tree.limits("memory", _MEMORY, _bytes)
    yield from _resource("RLIMIT_AS")
    total = re.search(r"^MemTotal: +(\d+) kB$", tree.text("/proc/meminfo"), re.MULTILINE)
    if total:
        yield Known(int(total[1]) * 1024, "/proc/meminfo MemTotal")


def _resource(name: str) -> Iterator[Known[int]]:
    soft, _ = resource.getrlimit(getattr(resource, name))
    if soft != resource.RLIM_INFINITY:
        yield Known(soft, name)


def _cores(numbers: list[int]) -> float | None:
    return numbers[0] / numbers[1] if len(numbers) == 2 else None


def _bytes(numbers: list[int]) -> int | None:
    return numbers[0] if len(numbers) == 1 and numbers[0] < _UNLIMITED else None


N = TypeVar("N", int, float)


def _least(limits: Iterator[Known[N]]) -> Known[N] | None:
    return min(limits, key=lambda limit: limit.value, default=None)


class _Mount(NamedTuple):
    """A mount of a cgroup hierarchy: its directory `root` appears at `point`."""

    version: str
    controllers: list[str]
    root: PurePosixPath
    point: PurePosixPath

    def directory(self, own: PurePosixPath) -> PurePosixPath | None:
        """Return where this mount shows a cgroup, or None if it does not."""
        inside = own.relative_to(self.root) if own.is_relative_to(self.root) else None
        return None if inside is None or ".." in inside.parts else self.point / inside


@dataclass(frozen=True, slots=True)
class _Tree:
    """The kernel's files below a root."""

    root: Path

    def text(self, path: PurePosixPath | str) -> str:
        """Return a file's text, empty if it cannot be read."""
        try:
            return (self.root / str(path).lstrip("/")).read_text("utf-8", "replace")
        except (OSError, ValueError):
            return ""

    def cpuinfo(self, *keys: str) -> str:
        """Return the value of the first line in /proc/cpuinfo that has one of the keys."""
        pattern = rf"^(?:{'|'.join(keys)})[ \t]*:[ \t]*(.*?)[ \t]*$"
        found = re.search(pattern, self.text("/proc/cpuinfo"), re.MULTILINE)
        return found[1] if found else ""

    def limits(
        self,
        controller: str,
        files: Mapping[str, tuple[str, ...]],
        limit: Callable[[list[int]], N | None],
    ) -> Iterator[Known[N]]:
        """Yield each limit of a controller on this process: of its cgroup and of those above."""
        for version, directory in self._cgroups(controller):
            paths = [directory / name for name in files[version]]
            value = limit(_numbers(" ".join(map(self.text, paths))))
            if value is not None:
                yield Known(value, f"cgroup {version} {paths[0]}")

    def _cgroups(self, controller: str) -> Iterator[tuple[str, PurePosixPath]]:
        """Yield the directories of this process's cgroup and of those above, in either version.

        Paths in /proc/self/cgroup and roots of mounts are both relative to the cgroup namespace;
        a path outside it begins with "/..". If this process's cgroup is not below any mount's root,
        the container's runtime mounted it under another path: then use the mount's own root.
        """
        for version, own in self._own(controller):
            mounts = [m for m in self._mounts() if m.version == version]
            if version == "v1":
                mounts = [m for m in mounts if controller in m.controllers]
            seen = [(m, d) for m in mounts if (d := m.directory(own))]
            for mount, directory in seen or [(m, m.point) for m in mounts]:
                for above in (directory, *directory.parents):
                    if above.is_relative_to(mount.point):
                        yield version, above

    def _own(self, controller: str) -> Iterator[tuple[str, PurePosixPath]]:
        for line in self.text("/proc/self/cgroup").splitlines():
            fields = line.split(":", 2)
            if len(fields) == 3 and fields[2].startswith("/"):
                if fields[:2] == ["0", ""]:
                    yield "v2", PurePosixPath(fields[2])
                elif controller in fields[1].split(","):
                    yield "v1", PurePosixPath(fields[2])

    def _mounts(self) -> Iterator[_Mount]:
        """Yield the mounts of cgroups. Format: proc(5), /proc/pid/mountinfo."""
        for line in self.text("/proc/self/mountinfo").splitlines():
            before, _, after = line.partition(" - ")
            left, right = before.split(" "), after.split(" ")
            version = {"cgroup2": "v2", "cgroup": "v1"}.get(right[0])
            if version and len(left) >= 5:
                root, point = (PurePosixPath(_unescaped(path)) for path in left[3:5])
                yield _Mount(version, right[-1].split(","), root, point)


def _numbers(text: str) -> list[int]:
    """Return the numbers in a limit's files; none if one is 0, "max", -1 or not a number."""
    words = text.split()
    positive = all(word.isdecimal() and word.isascii() and len(word) < 20 for word in words)
    numbers = [int(word) for word in words] if positive else []
    return numbers if all(numbers) else []


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)
