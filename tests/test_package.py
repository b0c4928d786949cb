"""What others install: a wheel or an sdist, and a server of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, SERVE, Start, environment, starting

SOURCES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE-MIT", "LICENSE-APACHE")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what `python -m build` makes: an sdist, and a wheel of that sdist."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    unused = shutil.ignore_patterns("__pycache__")  # a copy: building leaves files
    for name in ("embedserve", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=unused)
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    words = ("-m", "build", "--no-isolation", "--outdir", str(folder), str(source))
    subprocess.run([sys.executable, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(params=["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def installed(request: pytest.FixtureRequest, built: Path, tmp_path: Path) -> Path:
    """A folder in which it is installed."""
    (package,) = built.glob(request.param)
    install = ("-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    flags = ("--no-deps", "--no-build-isolation", "--target", str(tmp_path / "installed"))
    subprocess.run([sys.executable, *install, *flags, package], check=True, cwd=tmp_path)
    return tmp_path / "installed"


@pytest.fixture
def start_installed(
    installed: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """Start servers of what is installed, in another folder than the repository."""
    program = tmp_path / "embedserve"
    run = f'PYTHONPATH={installed} exec {SERVE.with_name("python")} -P -m embedserve "$@"'
    program.write_text(f"#!/bin/sh\ncd {tmp_path}\n{run}\n")
    program.chmod(0o755)
    yield from starting(program, tmp_path_factory)


def test_a_server_of_it(start_installed: Start, installed: Path, tiny_artifacts: Path) -> None:
    """It serves vectors and pages."""
    server = start_installed(tiny_artifacts.parent / "models.toml", tiny_artifacts)
    answered = subprocess.run(
        [SERVE.with_name("python"), "-P", "-c", "import embedserve; print(embedserve.__file__)"],
        env=environment(PYTHONPATH=str(installed)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert answered.stdout.startswith(str(installed))
    assert server.embed(model="tiny", input="a").status_code == 200
    with server.client() as client:
        assert "<script>" in client.get("/").text
        assert client.get("/openapi.json").status_code == 200


def test_the_sdist_is_the_package_alone(built: Path) -> None:
    """No tests, which need the whole repository; licenses and pages are in it."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE-MIT", "LICENSE-APACHE", "README.md", "embedserve/page/docs.js"} <= names
    assert not [name for name in names if name.startswith(("tests", "export"))]
