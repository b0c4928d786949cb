"""A cluster of two nodes on loopback with Ray Serve, and applications deployed to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no connection to anybody
os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "embedserve.cluster.proxy:middlewares"

import httpx
import ray
from ray.cluster_utils import Cluster

from embedserve.config.settings import Settings

STORE = 200_000_000  # bytes of each node's object store
# Logical: many small applications stand beside each other.
CORES = 64
NODES = ("left", "right")
BUILD = "embedserve.cluster.application:build"


def until(condition: Callable[[], bool]) -> None:
    """Ask until it holds: of other processes, who need the cores. The suite's timeout bounds it."""
    while not condition():
        threading.Event().wait(0.1)


@dataclass(slots=True)
class Serving:
    """Ray Serve on the cluster: what `serve deploy` talks to, and the proxy's address."""

    folder: Path
    dashboard: str
    url: str
    applications: dict[str, dict[str, Any]] = field(default_factory=dict)

    def deploy(
        self,
        name: str,
        args: Mapping[str, Any],
        *deployments: Mapping[str, Any],
        **options: Any,
    ) -> str:
        """Add or change an application, wait until it runs, and return its address."""
        self.applications[name] = {
            "name": name,
            "route_prefix": f"/{name}",
            "import_path": BUILD,
            "args": dict(args),
            "deployments": [dict(deployment) for deployment in deployments],
            **options,
        }
        self._put()
        until(lambda: self.status(name)["status"] not in ("NOT_STARTED", "DEPLOYING", "DELETING"))
        status = self.status(name)
        if status["status"] != "RUNNING":
            self.delete(name)
            raise AssertionError(f"{status['message']} {status['deployments']}")
        return f"{self.url}/{name}"

    def delete(self, *names: str) -> None:
        """Take applications away, and wait until they are gone."""
        for name in names:
            del self.applications[name]
        self._put()
        until(lambda: not set(names) & set(self._get()["applications"]))

    def status(self, name: str) -> dict[str, Any]:
        """What Ray Serve says of an application."""
        found = self._get()["applications"].get(name)
        return found or {"status": "NOT_STARTED", "message": "", "deployments": {}}

    def replicas(self, name: str, deployment: str) -> list[dict[str, Any]]:
        """The running replicas of a deployment: replica_id, node_id, pid."""
        found = self.status(name)["deployments"].get(deployment, {"replicas": []})
        return [replica for replica in found["replicas"] if replica["state"] == "RUNNING"]

    def log(self) -> str:
        """What processes of the cluster have written to standard error."""
        logs = (self.folder / "session_latest" / "logs").glob("worker-*.err")
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in logs)

    def _put(self) -> None:
        port = httpx.URL(self.url).port
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": port, "keep_alive_timeout_s": 75},
            "logging_config": {"enable_access_log": False},
            "applications": list(self.applications.values()),
        }
        self._ask("PUT", json=config)

    def _get(self) -> dict[str, Any]:
        found: dict[str, Any] = self._ask("GET").json()
        return found

    def _ask(self, method: str, **options: Any) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=60) as client:
            url = f"{self.dashboard}/api/serve/applications/"
            return client.request(method, url, **options).raise_for_status()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Serving]:
    """Two nodes, each with a resource of its name, and Ray Serve on both."""
    dashboard, proxy = _free_port(), _free_port()
    common = {"num_cpus": CORES, "object_store_memory": STORE, "temp_dir": str(folder)}
    head = {**common, "resources": {"left": CORES}}
    head |= {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": dashboard}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**common, resources={"right": CORES})
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield Serving(folder, f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{proxy}")
    finally:
        ray.shutdown()
        cluster.shutdown()


def settings(flags: Sequence[str]) -> dict[str, Any]:
    """The `args` of an application that are flags of `embedserve serve`."""
    kinds = {f.name: f.metadata["kind"] for f in fields(Settings)}
    args: dict[str, Any] = {"model": [], "settings": {}}
    words = iter(flags)
    for flag in words:
        name = flag.removeprefix("--").replace("-", "_")
        if name == "model":
            args["model"].append(next(words))
        elif kinds.get(name.removeprefix("no_")) is bool:
            args["settings"][name.removeprefix("no_")] = not name.startswith("no_")
        elif kinds[name] is tuple:
            args["settings"][name] = next(words).split(",")
        else:
            args["settings"][name] = kinds[name](next(words))
    return args


def kill(pid: int) -> None:
    """End a process as the kernel would."""
    os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
