"""What this process may use, read from trees of files as kernels and runtimes lay them."""

from __future__ import annotations

import math
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.system import host
from embedserve.system.host import Known
from tests.conftest import run_python

V2 = "34 24 0:29 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_CPU = "33 25 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "34 25 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
UNIFIED = "35 25 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
OTHER_MOUNTS = "22 1 254:0 / / rw - ext4 /dev/vda rw\n23 22 0:21 / /proc rw - proc proc rw\n"
GB = 1024**3


def tree(root: Path, cgroup: str, mounts: str, **files: str) -> Path:
    """A file tree with these lines in /proc/self, and each file at its path."""
    everything = {
        "/proc/self/cgroup": cgroup,
        "/proc/self/mountinfo": OTHER_MOUNTS + mounts,
        "/proc/meminfo": "MemTotal:       8388608 kB\nMemFree:         1000 kB\n",
        **files,
    }
    for path, text in everything.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return root


class TestQuota:
    """The least processor quota of the process's cgroup and those above, in cores."""

    def test_v2(self, tmp_path: Path) -> None:
        """cpu.max holds microseconds of a period, and the period."""
        path = "/sys/fs/cgroup/app/cpu.max"
        root = tree(tmp_path, "0::/app\n", V2, **{path: "150000 100000\n"})
        assert host.read(root).quota == Known(1.5, f"cgroup v2 {path}")

    def test_v1(self, tmp_path: Path) -> None:
        """A hierarchy of several controllers, with quota and period in files of their own."""
        directory = "/sys/fs/cgroup/cpu,cpuacct/app"
        files = {f"{directory}/cpu.cfs_quota_us": "50000\n"}
        files[f"{directory}/cpu.cfs_period_us"] = "20000\n"
        root = tree(tmp_path, "5:cpu,cpuacct:/app\n4:memory:/\n", V1_CPU + V1_MEMORY, **files)
        assert host.read(root).quota == Known(2.5, f"cgroup v1 {directory}/cpu.cfs_quota_us")

    @pytest.mark.parametrize("tightest", ["a", "a/b", "a/b/c"])
    def test_nested(self, tmp_path: Path, tightest: str) -> None:
        """The least of all levels wins, wherever it stands."""
        files = {f"/sys/fs/cgroup/{at}/cpu.max": "400000 100000" for at in ("a", "a/b", "a/b/c")}
        files[f"/sys/fs/cgroup/{tightest}/cpu.max"] = "200000 100000"
        quota = host.read(tree(tmp_path, "0::/a/b/c\n", V2, **files)).quota
        assert quota == Known(2.0, f"cgroup v2 /sys/fs/cgroup/{tightest}/cpu.max")

    def test_others_do_not_count(self, tmp_path: Path) -> None:
        """Cgroups beside or below the process's own do not bound it."""
        files = {
            "/sys/fs/cgroup/a/cpu.max": "max 100000",
            "/sys/fs/cgroup/b/cpu.max": "10000 100000",
            "/sys/fs/cgroup/a/below/cpu.max": "10000 100000",
        }
        assert host.read(tree(tmp_path, "0::/a\n", V2, **files)).quota is None

    def test_hybrid(self, tmp_path: Path) -> None:
        """With both versions mounted, each controller is found where it is."""
        cpu = "/sys/fs/cgroup/cpu,cpuacct/app"
        files = {
            f"{cpu}/cpu.cfs_quota_us": "300000",
            f"{cpu}/cpu.cfs_period_us": "100000",
            "/sys/fs/cgroup/unified/app/memory.max": str(2 * GB),
        }
        cgroup = "5:cpu,cpuacct:/app\n1:name=systemd:/app\n0::/app\n"
        found = host.read(tree(tmp_path, cgroup, V1_CPU + UNIFIED, **files))
        assert found.quota == Known(3.0, f"cgroup v1 {cpu}/cpu.cfs_quota_us")
        assert found.memory == Known(2 * GB, "cgroup v2 /sys/fs/cgroup/unified/app/memory.max")


class TestNamespaces:
    """What a container sees of its cgroup, as runtimes mount it."""

    @pytest.mark.parametrize(
        ("cgroup", "mount_root"),
        [
            pytest.param("/", "/", id="a namespace of its own"),
            pytest.param("/docker/4f0c", "/docker/4f0c", id="the host's path, mounted from it"),
            pytest.param("/kubepods/pod1/4f0c", "/kubepods/pod1/4f0c", id="deeper"),
            pytest.param("/../4f0c", "/../4f0c", id="beside the namespace's root"),
            pytest.param("/", "/docker/4f0c", id="namespace, mounted before it was made"),
            pytest.param("/system.slice/x", "/docker/4f0c", id="moved after the mount"),
            pytest.param("/../../elsewhere", "/", id="above the namespace"),
        ],
    )
    def test_mounted_at_its_own(self, tmp_path: Path, cgroup: str, mount_root: str) -> None:
        """The mount point is the container's own cgroup: its limit counts."""
        mount = V2.replace(" / /sys", f" {mount_root} /sys")
        path = "/sys/fs/cgroup/cpu.max"
        root = tree(tmp_path, f"0::{cgroup}\n", mount, **{path: "200000 100000"})
        assert host.read(root).quota == Known(2.0, f"cgroup v2 {path}")

    def test_below_the_mount_s_root(self, tmp_path: Path) -> None:
        """A cgroup made inside the container stands at its path below the mount point."""
        mount = V2.replace(" / /sys", " /docker/4f0c /sys")
        path = "/sys/fs/cgroup/inner/cpu.max"
        files = {path: "100000 100000", "/sys/fs/cgroup/cpu.max": "200000 100000"}
        root = tree(tmp_path, "0::/docker/4f0c/inner\n", mount, **files)
        assert host.read(root).quota == Known(1.0, f"cgroup v2 {path}")

    def test_another_s_mount(self, tmp_path: Path) -> None:
        """Where one mount shows the process's cgroup, a mount of another cgroup does not count."""
        other = "40 24 0:29 /other /mnt/other rw - cgroup2 cgroup2 rw\n"
        files = {
            "/mnt/other/cpu.max": "10000 100000",
            "/sys/fs/cgroup/app/cpu.max": "200000 100000",
        }
        quota = host.read(tree(tmp_path, "0::/app\n", other + V2, **files)).quota
        assert quota == Known(2.0, "cgroup v2 /sys/fs/cgroup/app/cpu.max")

    def test_nothing_above_the_mount(self, tmp_path: Path) -> None:
        """The walk ends at the mount point, and never leaves the hierarchy."""
        root = tree(tmp_path, "0::/app\n", V2, **{"/sys/fs/cpu.max": "10000 100000"})
        assert host.read(root).quota is None

    def test_a_space_in_a_path(self, tmp_path: Path) -> None:
        """The kernel writes it in octal."""
        mount = V2.replace("/sys/fs/cgroup", "/sys/fs/my\\040cgroup")
        path = "/sys/fs/my cgroup/cpu.max"
        root = tree(tmp_path, "0::/\n", mount, **{path: "200000 100000"})
        assert host.read(root).quota == Known(2.0, f"cgroup v2 {path}")


class TestMemory:
    """The least of cgroups, address space and the machine's memory, in bytes."""

    def test_v2(self, tmp_path: Path) -> None:
        """memory.max, here of the cgroup above."""
        path = "/sys/fs/cgroup/pod/memory.max"
        files = {path: str(GB), "/sys/fs/cgroup/pod/app/memory.max": "max"}
        root = tree(tmp_path, "0::/pod/app\n", V2, **files)
        assert host.read(root).memory == Known(GB, f"cgroup v2 {path}")

    @pytest.mark.parametrize("unlimited", ["9223372036854771712", "9223372036854710272", "-1"])
    def test_v1(self, tmp_path: Path, unlimited: str) -> None:
        """What v1 writes for "no limit", with pages of 4 or 64 KiB, is none."""
        path = "/sys/fs/cgroup/memory/pod/memory.limit_in_bytes"
        files = {path: str(GB), "/sys/fs/cgroup/memory/memory.limit_in_bytes": unlimited}
        root = tree(tmp_path, "4:memory:/pod\n", V1_MEMORY, **files)
        assert host.read(root).memory == Known(GB, f"cgroup v1 {path}")
        (root / path.lstrip("/")).write_text(unlimited)
        assert host.read(root).memory == Known(8 * GB, "/proc/meminfo MemTotal")

    def test_more_than_the_machine_has(self, tmp_path: Path) -> None:
        """A limit past the machine's memory bounds nothing."""
        files = {"/sys/fs/cgroup/memory.max": str(64 * GB)}
        memory = host.read(tree(tmp_path, "0::/\n", V2, **files)).memory
        assert memory == Known(8 * GB, "/proc/meminfo MemTotal")

    def test_address_space(self) -> None:
        """A process that may map only so much may not use more."""
        limit = "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))"
        show = "from embedserve.system import host; print(*host.read().memory)"
        assert run_python(f"import resource; {limit}; {show}") == f"{2**31} RLIMIT_AS\n"


class TestMalformed:
    """What cannot be read or understood bounds nothing, and fails nothing."""

    @pytest.mark.parametrize(
        "text",
        ["", "max", "max 100000", "x y", "100000", "100000 0", "-5 100000", "1e5 100000",
         "100000 100000 100000", "9" * 5000 + " 100000", "\0", "\N{SUPERSCRIPT TWO} 100000"],
    )  # fmt: skip
    def test_quota(self, tmp_path: Path, text: str) -> None:
        """Any other text of cpu.max than two numbers is no quota."""
        root = tree(tmp_path, "0::/\n", V2, **{"/sys/fs/cgroup/cpu.max": text})
        assert host.read(root).quota is None

    def test_an_empty_tree(self, tmp_path: Path) -> None:
        """Without /proc and /sys there are the cores of the affinity, and no limit."""
        found = host.read(tmp_path)
        assert found.cores == found.affinity == Known(len(os.sched_getaffinity(0)), "affinity")
        assert found.quota is None
        assert found.instructions is None
        assert found.cpu.value

    def test_a_directory_in_a_file_s_place(self, tmp_path: Path) -> None:
        """It cannot be read, which bounds nothing."""
        root = tree(tmp_path, "0::/\n", V2)
        (root / "sys/fs/cgroup/cpu.max").mkdir(parents=True)
        assert host.read(root).quota is None

    @given(cgroup=st.text(max_size=40), mounts=st.text(max_size=80), quota=st.text(max_size=20))
    def test_anything(
        self, tmp_path_factory: pytest.TempPathFactory, cgroup: str, mounts: str, quota: str
    ) -> None:
        """No text of these files raises an error, and a quota is above 0."""
        path = tmp_path_factory.mktemp("tree")
        files = {"/sys/fs/cgroup/cpu.max": quota}
        found = host.read(tree(path, f"0::/{cgroup}\n", V2 + mounts, **files)).quota
        assert found is None or found.value > 0


class TestCores:
    """How many lanes a server takes by itself."""

    @pytest.mark.parametrize(
        ("affinity", "quota", "cores"),
        [(8, None, 8), (8, 2.0, 2), (8, 2.9, 2), (8, 0.5, 1), (2, 4.0, 2), (1, 1.0, 1)],
    )
    def test_cores(self, affinity: int, quota: float | None, cores: int) -> None:
        """Whole cores of the lesser of affinity and quota, one at least, with its origin."""
        found = replace(
            host.read(),
            affinity=Known(affinity, "affinity"),
            quota=None if quota is None else Known(quota, "cgroup"),
        )
        least = "affinity" if quota is None or quota >= affinity else "cgroup"
        assert found.cores == Known(cores, least)
        assert quota is None or cores == max(1, math.floor(min(affinity, quota)))


class TestProcessor:
    """Which instructions inference can use."""

    X86 = "processor\t: 0\nmodel name\t: A CPU @ 2.0GHz\nflags\t\t: fpu avx2 fma avx512_vnni\n\n"
    ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp sve\nCPU part\t: 0xd40\n\n"

    @pytest.mark.parametrize(
        ("text", "found"),
        [(X86 * 2, ("avx2", "fma", "avx512_vnni")), (ARM * 2, ("asimd", "asimddp", "sve"))],
        ids=["x86-64", "aarch64"],
    )
    def test_instructions(self, tmp_path: Path, text: str, found: tuple[str, ...]) -> None:
        """Those of the first processor that matter, in a fixed order."""
        root = tree(tmp_path, "", "", **{"/proc/cpuinfo": text})
        assert host.read(root).instructions == Known(found, "/proc/cpuinfo")

    def test_model(self, tmp_path: Path) -> None:
        """Its name, where the kernel says one."""
        root = tree(tmp_path, "", "", **{"/proc/cpuinfo": self.X86})
        assert host.read(root).cpu == Known("A CPU @ 2.0GHz", "/proc/cpuinfo")


def test_this_process() -> None:
    """On the machine of the test: what the kernel says of this process."""
    found = host.read()
    assert 1 <= found.cores.value <= len(os.sched_getaffinity(0))
    assert found.memory is not None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert found.descriptors == Known(soft, "RLIMIT_NOFILE")
