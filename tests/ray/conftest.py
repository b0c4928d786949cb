"""tests/conftest.py's fixtures over Ray Serve: the same tests, another server."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from embedserve.cluster.front import LABEL
from tests import conftest
from tests.conftest import MINILM, ROOT
from tests.ray.serving import Serving, serving, settings

tiny_artifacts = conftest.tiny_artifacts
plain_start = conftest.start

# Tests of tests/test_wire.py and tests/test_serve.py that are of a process, which is not here.
NOT_HERE = {
    "TestKeys::test_reload": "SIGHUP; TestKeys of test_ray_serve.py has what takes its place",
    "TestKeys::test_shown_nowhere": "keys in the environment, which Ray shows; they are refused",
    "TestKeys::test_unusable_file": "how `embedserve serve` fails to start",
    "TestKeys::test_empty_variable": "how `embedserve serve` fails to start",
    "TestKeys::test_public_address": "the address is Ray's proxy's",
    "TestCors::test_preflights_are_framed": "reads the log of `embedserve serve`",
    "TestAliases::test_wrong_alias": "how `embedserve serve` fails to start",
    "TestLog": "standard error of `embedserve serve`; test_ray_serve.py reads Ray's log files",
    "TestStart": "how `embedserve serve` starts",
    "TestEnd": "how `embedserve serve` ends",
    "test_a_signal_while_it_starts": "how `embedserve serve` ends",
    "test_client_that_leaves": "sends to the root of the address; test_ray_serve.py has its own",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what NOT_HERE names, and nothing else; each of its lines names something."""
    of_wire = [item for item in items if item.path.name == "test_wire.py"]
    for name, reason in NOT_HERE.items():
        found = [item for item in of_wire if f"::{name}" in re.sub(r"\[.*", "", item.nodeid)]
        assert found or not of_wire, name
        for item in found:
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True, slots=True)
class Application:
    """A deployed application, as tests.conftest.Server where a client is concerned."""

    serving: Serving
    name: str
    url: str

    embed = conftest.Server.embed

    def client(self) -> httpx.Client:
        """A client of its own connections; it reads metrics as those of one process."""
        hooks = {"response": [_of_one_process]}
        return httpx.Client(base_url=self.url, trust_env=False, timeout=60, event_hooks=hooks)


def _of_one_process(answer: httpx.Response) -> None:
    """Take the label that tells replicas apart from metrics."""
    if answer.request.url.path.endswith("/metrics"):
        text = answer.read().decode()
        answer._content = re.sub(f',?{LABEL}="[^"]*"', "", text).encode()


Start = Callable[..., Application]


@pytest.fixture(scope="session")
def ray_serve() -> Iterator[Serving]:
    """A cluster of two nodes with Ray Serve."""
    # Ray's sockets stand in it, whose paths have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, serving(Path(folder)) as made:
        yield made


@pytest.fixture(scope="session")
def start(ray_serve: Serving, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Deploy applications, with the flags of `embedserve serve`."""
    numbers = itertools.count(1)

    def deploy(models: Path, artifacts: Path, *flags: str, **env: str) -> Application:
        if keys := env.pop("EMBEDSERVE_API_KEYS", ""):  # which Ray would show to all
            path = tmp_path_factory.mktemp("keys") / "keys"
            path.write_text("\n".join(keys.split(",")), encoding="utf-8")
            flags = (*flags, "--api-keys-file", str(path))
        assert not env
        name = f"app{next(numbers)}"
        args = {"models": str(models), "artifacts": str(artifacts), **settings(flags)}
        return Application(ray_serve, name, ray_serve.deploy(name, args))

    return deploy


@pytest.fixture(autouse=True)
def deleted(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test itself deployed goes with it; what modules share stays."""
    if "ray_serve" not in request.fixturenames:
        yield
        return
    made: Serving = request.getfixturevalue("ray_serve")
    before = set(made.applications)
    yield
    if new := set(made.applications) - before:
        made.delete(*new)


@pytest.fixture(scope="session")
def server(start: Start, tiny_artifacts: Path) -> Application:
    """One application of tiny models, shared by tests that leave it as it was."""
    return start(tiny_artifacts.parent / "models.toml", tiny_artifacts)


@pytest.fixture(scope="session")
def minilm(start: Start) -> Application:
    """One application of the real all-MiniLM-L6-v2, as exported by `make export`."""
    return start(ROOT / "models.toml", ROOT / "artifacts", "--model", MINILM)


@pytest.fixture(scope="session")
def plain(plain_start: Callable[..., conftest.Server]) -> conftest.Server:
    """`embedserve serve` with all-MiniLM-L6-v2, to compare with."""
    return plain_start(ROOT / "models.toml", ROOT / "artifacts", "--model", MINILM)
