"""Clusters of two nodes on loopback, and what runs on them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no connection to anybody

from ray.cluster_utils import Cluster

from tests.bulk.files import command
from tests.conftest import ROOT, environment

STORE = 200_000_000  # bytes of each node's object store
EMBED = "ray::MapWorker(MapBatches(Embed))"


@contextlib.contextmanager
def two_nodes() -> Iterator[Cluster]:
    """A head and another node, a core each."""
    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **options})
    try:
        cluster.add_node(**options)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def embed_on(cluster: Cluster, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `embedserve embed --ray` to its end."""
    return finished(start_on(cluster, *arguments))


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for the end of a command."""
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_on(cluster: Cluster, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start `embedserve embed --ray`."""
    return start(*arguments, "--ray", cluster.address)


def start(*arguments: str | Path, module: str = "embedserve") -> subprocess.Popen[str]:
    """Start `embedserve embed`."""
    return subprocess.Popen(
        command(*arguments, module=module),
        cwd=ROOT,
        env=environment(HOME=os.environ.get("HOME", "/"), RAY_USAGE_STATS_ENABLED="0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a running command does."""
    while not condition():
        assert process.poll() is None, process.communicate()
        threading.Event().wait(0.02)  # the command needs the cores


def workers() -> dict[int, int]:
    """The processes that hold the model, each with the node's process that started it."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (place / "cmdline").read_bytes().startswith(EMBED.encode()):
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(place.name)] = parent
    return found
