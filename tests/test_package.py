"""What others install: a wheel, and a server of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, SERVE, Start, environment, starting

SOURCES = ("pyproject.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the wheel in it, which is built of a copy: building leaves files."""
    source, folder = tmp_path / "source", tmp_path / "installed"
    unused = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "embedserve", source / "embedserve", ignore=unused)
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, source], cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder, wheel], check=True)
    return folder


@pytest.fixture
def start_wheel(
    installed: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """Start servers of the wheel, in another folder than the repository."""
    program = tmp_path / "embedserve"
    run = f'PYTHONPATH={installed} exec {SERVE.with_name("python")} -P -m embedserve "$@"'
    program.write_text(f"#!/bin/sh\ncd {tmp_path}\n{run}\n")
    program.chmod(0o755)
    yield from starting(program, tmp_path_factory)


def test_a_server_of_the_wheel(start_wheel: Start, installed: Path, tiny_artifacts: Path) -> None:
    """It serves vectors and pages."""
    server = start_wheel(tiny_artifacts.parent / "models.toml", tiny_artifacts)
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
