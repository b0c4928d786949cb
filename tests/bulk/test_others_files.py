"""A job writes, replaces and removes its own files alone, whatever stands where it writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bulk.files import embed
from tests.bulk.test_command import flags

__all__ = ["flags"]  # a fixture
LINES = '{"text": "a"}\n{"text": "b"}\n'
PRECIOUS = "a day's work"


def _same(source: Path, target: Path) -> Path:
    return source


def _link(source: Path, target: Path) -> Path:
    target.symlink_to(source)
    return target


def _hard_link(source: Path, target: Path) -> Path:
    target.hardlink_to(source)
    return target


def _another_spelling(source: Path, target: Path) -> Path:
    return source.parent / ".." / source.parent.name / source.name


def _its_errors(source: Path, target: Path) -> Path:
    target.with_name(f"{target.name}.errors.jsonl").hardlink_to(source)
    return target


@pytest.mark.parametrize(
    "name", [_same, _link, _hard_link, _another_spelling, _its_errors], ids=lambda f: f.__name__
)
def test_the_input_is_no_output(
    name: Callable[[Path, Path], Path], tmp_path: Path, flags: list[str | Path]
) -> None:
    """Under whatever name: refused with 64, and the input is as it was."""
    source = tmp_path / "in.jsonl"
    source.write_text(LINES)
    done = embed(source, name(source, tmp_path / "out.jsonl"), *flags, "--overwrite")
    assert done.returncode == 64, done.stderr
    assert "is the same file as" in done.stderr
    assert source.read_text() == LINES


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=len)
@pytest.mark.parametrize("name", ["thesis.tex", "1.part", "notes.tmp", "lock.txt", "a/b"])
def test_a_directory_of_somebody_else(
    name: str, more: list[str], tmp_path: Path, flags: list[str | Path]
) -> None:
    """OUTPUT.parts with a file that no job wrote is left as it is, and the file named."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.npy"
    source.write_text(LINES)
    precious = tmp_path / "out.npy.parts" / name
    precious.parent.mkdir(parents=True)
    precious.write_text(PRECIOUS)
    done = embed(source, target, *flags, *more)
    assert done.returncode == 73, done.stderr
    assert f"out.npy.parts/{name.split('/')[0]}: is not a file of embedserve" in done.stderr
    assert precious.read_text() == PRECIOUS
    assert not target.exists()


def test_a_file_that_comes_meanwhile(tmp_path: Path, flags: list[str | Path]) -> None:
    """A finished job whose directory has another's file leaves it, asked again."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.npy"
    source.write_text(LINES)
    assert embed(source, target, *flags).returncode == 0
    precious = tmp_path / "out.npy.parts" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text(PRECIOUS)
    assert embed(source, target, *flags).returncode == 0
    assert precious.read_text() == PRECIOUS


@pytest.mark.parametrize(
    "name",
    [
        *("out.npy.tmp", "out.npy.job.json.tmp", "out.npy.errors.jsonl.tmp", "out.npy.job.json"),
        *("out.npy.errors.jsonl", "out.npy.parts/lock", "out.npy.parts/job.json"),
        *("out.npy.parts/output.tmp", "out.npy.parts/00000000.part.tmp", "out.npy.parts"),
        *("out.npy.parts/00000000.part", "out.npy"),
    ],
)
def test_a_planted_link(name: str, tmp_path: Path, flags: list[str | Path]) -> None:
    """A link under a name that is written to leads nowhere."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.npy"
    source.write_text(LINES + "{\n")
    precious = tmp_path / "precious"
    precious.mkdir() if name.endswith("parts") else precious.write_text(PRECIOUS)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(precious)
    done = embed(source, target, *flags)
    assert done.returncode in (0, 73), done.stderr
    assert "Traceback" not in done.stderr
    if precious.is_file():
        assert precious.read_text() == PRECIOUS
    else:
        assert not os.listdir(precious)  # noqa: PTH208  # names alone
