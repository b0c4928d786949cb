"""The run for a GPU, in miniature and on the CPU: its parts, its scripts, each of its steps."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests import tiny
from tests.gpu import table
from tests.gpu.place import FP16, FP32, NOMIC, ROOT
from tests.gpu.steps import STEPS

PART = 20_000
# What cannot be there without a GPU, or in the environment of the tests.
WITHOUT_GPU = {"sentence-transformers, fp16"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of a few tiny models; real ones are made by `make gpu-parts`."""
    folder = tmp_path_factory.mktemp("parts")
    tree = folder / "tree"
    for name in (FP32, FP16, NOMIC):
        tiny.write(tree / "artifacts" / name)
    tables = "".join(f"[models.{name}]\n" for name in (FP32, FP16, NOMIC))
    (tree / "models.toml").write_text(tables, encoding="utf-8")
    (tree / "wheels").mkdir()
    with tarfile.open(folder / "archive.tar", "w") as tar:
        for path in sorted(tree.iterdir()):
            tar.add(path, path.name)
    whole = (folder / "archive.tar").read_bytes()
    files = {"archive.tar": whole}
    for number, start in enumerate(range(0, len(whole), PART), 1):
        files[f"part-{number:02}"] = whole[start : start + PART]
        (folder / f"part-{number:02}").write_bytes(whole[start : start + PART])
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    shutil.rmtree(tree)
    return folder


def script(name: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script with this Python as python3."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", str(ROOT / "tests" / "gpu" / name), *map(str, arguments)],
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_parts_come_one_by_one(parts: Path, tmp_path: Path) -> None:
    """Each call says how far it is; a part out of turn or with other bytes is refused."""
    names = sorted(parts.glob("part-*"))
    assert len(names) > 2
    done = script("collect.sh", tmp_path / "here", names[0])
    assert done.stdout == f"1 of {len(names)} parts\n"
    skipped = script("collect.sh", tmp_path / "here", names[2])
    assert (skipped.returncode, "part 2 is next" in skipped.stderr) == (65, True)
    damaged = tmp_path / "damaged" / names[1].name
    damaged.parent.mkdir()
    shutil.copy(parts / "SHA256SUMS", damaged.parent)
    damaged.write_bytes(b"x" + names[1].read_bytes()[1:])
    assert script("collect.sh", tmp_path / "here", damaged).returncode != 0
    done = script("collect.sh", tmp_path / "here", *names[1:])
    assert "unpacked" in done.stdout, done.stderr
    assert (tmp_path / "here" / "artifacts" / FP16 / "manifest.json").exists()


def test_every_step_runs(parts: Path, tmp_path: Path) -> None:
    """On the CPU's provider and tiny models, each step ends in time and finds what it should."""
    collected = script("collect.sh", tmp_path / "here", *sorted(parts.glob("part-*")))
    assert collected.returncode == 0, collected.stderr
    short = {"GPU_PROVIDER": "cpu", "GPU_SECONDS": "0.1", "GPU_SCALE": "0.01"}
    done = script("run.sh", tmp_path / "here", tmp_path / "out", **short)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(report["steps"]) == list(STEPS)
    for name, step in report["steps"].items():
        assert step["ended"] == "done", (name, step)
        for what, found in step["found"].items():
            assert "Error: " not in str(found) or what in WITHOUT_GPU, (name, what, found)
    vectors = report["steps"]["parity"]["found"]
    assert all(found["largest_difference"] < 1e-6 for found in vectors.values())
    alone = report["steps"]["company"]["found"][f"{FP32}, alone again"]
    assert alone["equal_bits"] == alone["texts"] > 0


def test_the_page_has_the_figures() -> None:
    """docs/cuda.md is up to date: python -m tests.gpu.table"""
    text = table.PAGE.read_text(encoding="utf-8")
    assert text == table.page(text, table.read())


def test_a_report_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its commit; a later figure takes the place of an earlier one, and names its origin."""
    monkeypatch.setattr(table, "REPORT", tmp_path / "report.json")
    for number, found in enumerate([{"a": 1, "b": 1}, {"b": 2}]):
        run = {"date": f"2026-11-0{number}", "steps": {"memory": {"found": found}}}
        (tmp_path / "one.json").write_text(json.dumps(run), encoding="utf-8")
        table.add(tmp_path / "one.json")
    found, origin = table.last(table.read(), "memory")
    assert found == {"a": 1, "b": 2}
    assert origin.startswith("2026-11-00, commit ")
    assert "; 2026-11-01, commit " in origin


def test_an_unknown_step(tmp_path: Path) -> None:
    """It is named, with those that there are."""
    done = script("run.sh", tmp_path, tmp_path / "out", "partiy")
    assert (done.returncode, "no such step: partiy" in done.stderr) == (64, True)
