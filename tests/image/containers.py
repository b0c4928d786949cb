"""Containers of the image, confined as an operator would: by podman, by docker, or of a bundle.

buildah builds images and runs none: then its working container's root becomes an OCI bundle, which
runc starts with what the image's configuration says.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

SECONDS = 120.0  # nothing that is waited for here takes a third of it
EXPORT_SECONDS = 1800.0
USER = 65532
# Runtimes give every process a HOME, the one of passwd or /: this is none.
NO_HOME = "HOME=/nonexistent"


@dataclass(frozen=True, slots=True)
class Image:
    """An image's configuration, as the OCI specification names its parts."""

    entrypoint: list[str]
    command: list[str]
    environment: list[str]
    user: str
    directory: str
    labels: Mapping[str, str]
    health: list[str]
    layers: list[str]


class Container(Protocol):
    """One container that runs."""

    def execute(self, *command: str) -> subprocess.Popen[str]:
        """Start another process in it, as its own user."""

    def terminate(self) -> None:
        """SIGTERM to its process 1."""

    def runs(self) -> bool:
        """Whether its process 1 has not ended."""

    def wait(self) -> int:
        """Return the exit status of its process 1."""

    def log(self) -> str:
        """What it wrote on standard error."""


def run(*command: str | Path, seconds: float = SECONDS) -> str:
    """Run a command of the host; its standard output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
    return done.stdout


# -- podman and docker ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _EngineContainer:
    engine: str
    name: str

    def execute(self, *command: str) -> subprocess.Popen[str]:
        return _piped(self.engine, "exec", self.name, *command)

    def terminate(self) -> None:
        run(self.engine, "kill", "--signal", "TERM", self.name)

    def runs(self) -> bool:
        return run(self.engine, "inspect", "--format", "{{.State.Running}}", self.name) == "true\n"

    def wait(self) -> int:
        return int(run(self.engine, "wait", self.name))

    def log(self) -> str:
        return subprocess.run(
            [self.engine, "logs", self.name], capture_output=True, text=True, check=True
        ).stderr


@dataclass(frozen=True, slots=True)
class Engine:
    """podman or docker."""

    program: str

    def build(self, name: str, file: Path, context: Path, **arguments: str) -> None:
        """Build an image."""
        _build(self.program, name, file, context, arguments)

    def inspect(self, image: str) -> Image:
        """Read an image's configuration."""
        (found,) = json.loads(run(self.program, "image", "inspect", image))
        # podman has it beside the configuration, docker in it.
        health = found["Config"].get("Healthcheck") or found.get("Healthcheck") or {}
        return _image(found["Config"], health, found["RootFS"]["Layers"])

    def run(self, image: str, volume: str, flags: Sequence[str], *arguments: str) -> str:
        """Run an image's program to its end, not confined; its standard output."""
        command = ("run", "--rm", "--volume", volume, *flags, image)
        return run(self.program, *command, *arguments, seconds=EXPORT_SECONDS)

    @contextlib.contextmanager
    def start(self, image: str, artifacts: Path | None, scratch: Path) -> Iterator[Container]:
        """Run the server, confined, with artifacts on a volume; removed at the end."""
        name = _name()
        confined = ("--read-only", "--cap-drop", "ALL", "--network", "none", "--user", str(USER))
        command = ("run", "--detach", "--name", name, *confined, "--env", NO_HOME)
        # podman mounts file systems to write to beside a read-only root, unless told not to.
        strictly = ("--read-only-tmpfs=false",) if Path(self.program).name == "podman" else ()
        volume = ("--volume", f"{artifacts.resolve()}:/artifacts:ro") if artifacts else ()
        run(self.program, *command, *strictly, *volume, image)
        try:
            yield _EngineContainer(self.program, name)
        finally:
            run(self.program, "rm", "--force", name)


# -- buildah, with runc ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _BundleContainer:
    runtime: str
    name: str
    process: subprocess.Popen[bytes]
    logged: Path

    def execute(self, *command: str) -> subprocess.Popen[str]:
        return _piped(self.runtime, "exec", self.name, *command)

    def terminate(self) -> None:
        run(self.runtime, "kill", self.name, "TERM")

    def runs(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    def log(self) -> str:
        return self.logged.read_text()


@dataclass(frozen=True, slots=True)
class Bundles:
    """The roots of buildah's working containers, started by an OCI runtime."""

    buildah: str
    runtime: str

    def build(self, name: str, file: Path, context: Path, **arguments: str) -> None:
        """Build an image."""
        _build(self.buildah, name, file, context, arguments)

    def inspect(self, image: str) -> Image:
        """Read an image's configuration."""
        found = json.loads(run(self.buildah, "inspect", "--type", "image", image))["Docker"]
        config = found["config"]
        return _image(config, config.get("Healthcheck") or {}, found["rootfs"]["diff_ids"])

    def run(self, image: str, volume: str, flags: Sequence[str], *arguments: str) -> str:
        """Run an image's program to its end, not confined; its standard output."""
        name = run(self.buildah, "from", "--pull-never", image).strip()
        command = (*self.inspect(image).entrypoint, *arguments)
        options = ("run", "--volume", volume, *flags)
        try:
            return run(self.buildah, *options, name, "--", *command, seconds=EXPORT_SECONDS)
        finally:
            run(self.buildah, "rm", name)

    @contextlib.contextmanager
    def start(self, image: str, artifacts: Path | None, scratch: Path) -> Iterator[Container]:
        """Run the server, confined, with artifacts on a volume; removed at the end."""
        with self.mounted(image) as root:
            specification = bundle(self.inspect(image), root, artifacts)
            (scratch / "config.json").write_text(json.dumps(specification))
            name, logged = _name(), scratch / "log"
            command = [self.runtime, "run", "--bundle", str(scratch), name]
            with logged.open("wb") as output:
                process = subprocess.Popen(command, stdout=output, stderr=output)
            try:
                yield _BundleContainer(self.runtime, name, process, logged)
            finally:
                # It may end of itself meanwhile.
                subprocess.run(
                    [self.runtime, "kill", name, "KILL"], capture_output=True, check=False
                )
                process.wait(SECONDS)

    @contextlib.contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The root of a working container, removed at the end."""
        name = run(self.buildah, "from", "--pull-never", image).strip()
        try:
            yield Path(run(self.buildah, "mount", name).strip())
        finally:
            run(self.buildah, "rm", name)


def bundle(image: Image, root: Path, artifacts: Path | None) -> dict[str, Any]:
    """Return config.json of an OCI bundle: read-only, no capability, a network of its own.

    A network namespace that is made anew has its loopback and nothing else.
    https://github.com/opencontainers/runtime-spec/blob/main/config.md
    """
    limited = ["nosuid", "noexec", "nodev"]
    volume = {
        "destination": "/artifacts",
        "type": "bind",
        "source": str((artifacts or root).resolve()),
        "options": ["rbind", "ro", *limited],
    }
    volumes = [volume] if artifacts else []
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": USER, "gid": USER},
            "args": [*image.entrypoint, *image.command],
            "env": [*image.environment, NO_HOME],
            "cwd": image.directory or "/",
            "capabilities": {
                kind: []
                for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
            },
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "image-test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=64k"],
            },
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": [*limited, "ro"],
            },
            *volumes,
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    }


# -- which -----------------------------------------------------------------------------------------


def runner() -> Engine | Bundles:
    """What the images were built with can run them; AssertionError where it cannot."""
    program = os.environ["CONTAINER"]
    assert shutil.which(program), "no podman, docker or buildah here: install one"
    if Path(program).name != "buildah":
        return Engine(program)
    assert shutil.which("runc"), "buildah runs no image: install runc beside it"
    return Bundles(program, "runc")


def _build(
    program: str, name: str, file: Path, context: Path, arguments: Mapping[str, str]
) -> None:
    # OCI's own format has no place for a health check; docker knows no other than its own.
    form = () if Path(program).name == "docker" else ("--format", "docker")
    given = (word for item in arguments.items() for word in ("--build-arg", "=".join(item)))
    run(program, "build", *form, *given, "--tag", name, "--file", file, context)


def _image(config: Mapping[str, Any], health: Mapping[str, Any], layers: list[str]) -> Image:
    return Image(
        entrypoint=config.get("Entrypoint") or [],
        command=config.get("Cmd") or [],
        environment=config.get("Env") or [],
        user=config.get("User") or "",
        directory=config.get("WorkingDir") or "",
        labels=config.get("Labels") or {},
        health=health.get("Test") or [],
        layers=layers,
    )


def _name() -> str:
    return f"image-test-{secrets.token_hex(4)}"


def _piped(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
