"""The image, run as an operator would: what it needs, what it gives, what is not in it."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve import __version__, artifact
from embedserve.artifact import TOLERANCES
from tests.image.containers import SECONDS, USER, Bundles, Container, Engine, Image, runner
from tests.image.environment import ARTIFACTS, IMAGE, ROOT

MODEL = "all-MiniLM-L6-v2"
MAX_BYTES = 330_000_000  # unpacked, without models
PYTHON = "/venv/bin/python"
INSIDE = (ROOT / "tests" / "image" / "inside.py").read_text()
# Names of programs and packages that a server has no use for, and who breaks in has.
UNWANTED = (
    *("sh", "bash", "dash", "busybox", "env", "cat", "ls", "chmod", "find", "perl"),
    *("apt", "apt-get", "dpkg", "pip", "pip3", "curl", "wget"),
    *("gcc", "cc", "g++", "cpp", "ld", "as", "make"),
)
UNWANTED_PACKAGES = ("pip", "setuptools", "ensurepip", "torch", "transformers", "huggingface_hub")


@pytest.fixture(scope="module")
def engine() -> Engine | Bundles:
    """What runs the image."""
    return runner()


@pytest.fixture(scope="module")
def image(engine: Engine | Bundles) -> Image:
    """The image's configuration."""
    return engine.inspect(IMAGE)


@pytest.fixture(scope="module")
def container(
    engine: Engine | Bundles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """A container that is ready, shared by tests that leave it as it was."""
    with engine.start(IMAGE, ARTIFACTS, tmp_path_factory.mktemp("bundle")) as started:
        until_ready(started)
        yield started


@pytest.fixture(scope="module")
def files(container: Container) -> list[tuple[str, int, int]]:
    """Path, mode and size of all that is in it."""
    return [(path, mode, size) for path, mode, size in inside(container, "files")]


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, standard output and error of a process."""
    out, error = process.communicate(timeout=SECONDS)
    return process.returncode, out, error


def inside(container: Container, *words: str) -> Any:
    """Run a verb of inside.py in the container; what it answers."""
    status, out, error = finish(container.execute(PYTHON, "-c", INSIDE, *words))
    assert status == 0, error
    return json.loads(out)


def until_ready(container: Container) -> None:
    """Wait for the image's own health check."""
    end = time.monotonic() + SECONDS
    while finish(container.execute("/venv/bin/embedserve", "health"))[0]:
        assert container.runs(), container.log()
        assert time.monotonic() < end, container.log()


class TestServes:
    """Without root, capabilities, network, HOME, and anything that it could write to."""

    def test_it_is_confined(self, container: Container) -> None:
        """So it runs here: seen from inside."""
        found = inside(container, "process")
        assert set(found["user"]) == {USER}
        assert set(found["capabilities"].values()) == {0}
        assert found["interfaces"] == ["lo"]
        assert found["reached"] is False
        assert found["read_only"] is True
        assert found["written"] == []
        assert found["environment"]["HOME"] == "/nonexistent"

    def test_process_1_is_the_server(self, container: Container, image: Image) -> None:
        """No shell and no init stands before it: signals come to the server itself."""
        command = inside(container, "process")["command"]
        assert command == [PYTHON, *image.entrypoint, *image.command]

    def test_golden_vectors(self, container: Container) -> None:
        """The golden texts give sentence-transformers' vectors."""
        assert_golden(container, ARTIFACTS / MODEL)

    def test_pages(self, container: Container) -> None:
        """The files that are no modules are inside, too."""
        paths = ("/", "/docs", "/openapi.json", "/metrics", "/v1/models", f"/v1/models/{MODEL}")
        assert inside(container, "statuses", *paths) == dict.fromkeys(paths, 200)

    @pytest.mark.parametrize(
        "command",
        [("doctor",), ("verify",), ("tune", "--seconds", "2"), ("--version",)],
        ids=lambda words: words[0],
    )
    def test_every_command_works(self, container: Container, command: tuple[str, ...]) -> None:
        """Nothing that was left out is missed by any of them."""
        status, out, error = finish(container.execute("/venv/bin/embedserve", *command))
        assert status == 0, error
        assert out
        assert "Traceback" not in error


class TestHealth:
    """HEALTHCHECK, by the product's own command."""

    def test_declared(self, image: Image) -> None:
        """The image's configuration has it, in the form that needs no shell."""
        assert image.health == ["CMD", "/venv/bin/embedserve", "health"]

    def test_ready(self, container: Container, image: Image) -> None:
        """0 while the server is ready."""
        status, out, _ = finish(container.execute(*image.health[1:]))
        assert status == 0
        assert MODEL in out

    def test_not_there(self, container: Container, image: Image) -> None:
        """1 where nobody listens."""
        status, _, error = finish(container.execute(*image.health[1:], "--port", "1"))
        assert status == 1
        assert "refused" in error


class TestWithModels:
    """deploy/Containerfile.with-models: an artifact inside, and no volume."""

    def test_serves(self, engine: Engine | Bundles, tmp_path: Path) -> None:
        """It is the same image otherwise, its health check included."""
        name, file = f"{IMAGE}-with-models", ROOT / "deploy" / "Containerfile.with-models"
        engine.build(name, file, ARTIFACTS, IMAGE=IMAGE, MODEL=MODEL)
        assert engine.inspect(name).health == engine.inspect(IMAGE).health
        with engine.start(name, None, tmp_path) as container:
            until_ready(container)
            assert_golden(container, ARTIFACTS / MODEL)


class TestContents:
    """The server and what it needs, and nothing else."""

    def test_size(self, files: list[tuple[str, int, int]]) -> None:
        """At most 330 MB unpacked, without models."""
        size = sum(size for _, _, size in files)
        largest: dict[str, int] = {}
        for path, _, one in files:
            part = "/".join(path.split("/")[:7])
            largest[part] = largest.get(part, 0) + one
        print(f"\nunpacked: {size / 1e6:.1f} MB in {len(files)} files")
        for part, one in sorted(largest.items(), key=lambda item: -item[1])[:12]:
            print(f"{one / 1e6:8.1f}  {part}")
        assert size <= MAX_BYTES

    def test_no_tools(self, files: list[tuple[str, int, int]]) -> None:
        """No shell, no package manager, no compiler; the only programs are Python's."""
        programs = {
            path
            for path, mode, _ in files
            if (stat.S_ISREG(mode) or stat.S_ISLNK(mode))
            and re.fullmatch(r"/(usr/(local/)?|venv/)?s?bin/.*", path)
        }
        names = {Path(path).name for path in programs}
        assert names & set(UNWANTED) == set()
        assert {re.sub(r"[\d.]+$", "", name) for name in names} <= {
            "python",
            "embedserve",
            "uvicorn",
        }

    def test_no_packages_of_others(self, files: list[tuple[str, int, int]]) -> None:
        """No pip, no torch, no download from a hub."""
        parts = {part for path, _, _ in files for part in path.split("/")}
        assert parts & set(UNWANTED_PACKAGES) == set()
        assert "embedserve" in parts

    def test_nothing_with_privileges(self, files: list[tuple[str, int, int]]) -> None:
        """No file gives whoever runs it another user; nothing but links is open to all."""
        found = [
            path
            for path, mode, _ in files
            if mode & (stat.S_ISUID | stat.S_ISGID)
            or (mode & stat.S_IWOTH and not stat.S_ISLNK(mode))
        ]
        assert found == []

    def test_every_library_loads(self, container: Container) -> None:
        """What a shared object is linked with is in the image."""
        loaded = inside(container, "libraries")
        assert len(loaded) > 50
        assert {path: why for path, why in loaded.items() if why} == {}

    def test_compiled(self, files: list[tuple[str, int, int]]) -> None:
        """Every module stands there compiled: a start compiles nothing."""
        paths = {path for path, _, _ in files}
        compiled = {path for path in paths if path.endswith(".pyc")}
        sources = {path for path in paths if path.endswith(".py")}
        tag = next(iter(compiled)).split(".")[-2]
        expected = {
            f"{Path(path).parent}/__pycache__/{Path(path).stem}.{tag}.pyc" for path in sources
        }
        assert expected == compiled

    def test_bill_of_materials(
        self, container: Container, files: list[tuple[str, int, int]]
    ) -> None:
        """The SBOM names what is installed, each with its version, and nothing else."""
        code = (
            "import importlib.metadata as m, json;"
            "print(json.dumps([[d.metadata['Name'], d.version] for d in m.distributions()]))"
        )
        status, out, error = finish(container.execute(PYTHON, "-c", code))
        assert status == 0, error
        installed = {(normal(name), version) for name, version in json.loads(out)}
        document = json.loads((ROOT / "build" / "sbom.cdx.json").read_text())
        components = [document["metadata"]["component"], *document["components"]]
        debian = {c["name"] for c in components if c.get("purl", "").startswith("pkg:deb/")}
        python = [c for c in components if c["name"] not in debian]
        assert {(normal(c["name"]), c["version"]) for c in python} == installed
        assert debian == {Path(path).name for path, _, _ in files if "/dpkg/status.d/" in path}
        assert {"libc6", "libssl3", "python3.11-minimal"} <= debian


class TestConfiguration:
    """What the image says of itself."""

    def test_process(self, image: Image) -> None:
        """It starts without a shell, as nobody in particular."""
        assert image.entrypoint == ["/venv/bin/embedserve"]
        assert image.command == ["serve"]
        assert image.user == f"{USER}:{USER}"
        assert not any(line.startswith("HOME=") for line in image.environment)

    def test_labels(self, image: Image) -> None:
        """Version, revision and time of the source that it was made of."""
        label = {
            key.removeprefix("org.opencontainers.image."): value
            for key, value in image.labels.items()
        }
        assert label["title"] == "embedserve"
        assert label["version"] == __version__
        assert label["licenses"] == "MIT OR Apache-2.0"
        assert re.fullmatch(r"[0-9a-f]{40}", label["revision"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", label["created"])
        assert label["description"]


class TestEnd:
    """SIGTERM to process 1."""

    def test_what_is_in_flight_is_answered(self, engine: Engine | Bundles, tmp_path: Path) -> None:
        """Seconds of work that came before the signal are answered; then it ends with 0."""
        with engine.start(IMAGE, ARTIFACTS, tmp_path) as container:
            until_ready(container)
            client = container.execute(PYTHON, "-c", INSIDE, "embed_long", MODEL, "96")
            while not inside(container, "metric", "embedserve_requests_in_flight"):
                assert client.poll() is None, "it was answered before the signal"
            container.terminate()
            assert client.poll() is None, "it was answered before the signal"
            status, out, error = finish(client)
            assert status == 0, error
            answer = json.loads(out)
            assert answer["status"] == 200
            assert len(answer["body"]["data"]) == 96
            assert container.wait() == 0
            assert "draining" in container.log()


def assert_golden(container: Container, directory: Path) -> None:
    """What a container answers is the artifact's own vectors, within the tolerance of float32."""
    golden = artifact.read_golden(directory)
    request = {"model": MODEL, "input": golden.texts}
    answer = inside(container, "embed", json.dumps(request))
    assert answer["status"] == 200, answer["body"]
    vectors = np.array([row["embedding"] for row in answer["body"]["data"]], np.float32)
    assert vectors.shape == golden.vectors.shape
    assert np.abs(vectors - golden.vectors).max() <= TOLERANCES["fp32"]


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
