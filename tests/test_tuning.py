"""`embedserve tune`: what is measured, what is recommended, what is written."""

from __future__ import annotations

import json
import threading
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve import artifact
from embedserve.arrays.types import Ints
from embedserve.config.models_toml import ModelSpec
from embedserve.diagnose import tuning
from embedserve.diagnose.sample_texts import texts
from embedserve.diagnose.tuning import Candidate, Trial, candidates, had, recommend, table
from embedserve.errors import Exit
from embedserve.model.loading import load_model
from embedserve.system import host
from tests import tiny
from tests.conftest import run


@given(st.integers(1, 1024))
def test_candidates(cores: int) -> None:
    """Few enough for a minute, within the cores; all cores as lanes are among them."""
    grid = candidates(cores)
    assert len(grid) == len(set(grid)) <= 20
    assert all(c.lanes >= 1 and c.lanes * c.threads <= cores for c in grid)
    assert Candidate(cores, 1, 256) in grid


def test_texts() -> None:
    """English of mixed lengths, the same each time."""
    first = texts(500)
    lengths = sorted(len(text.split()) for text in first)
    assert first == texts(500)
    assert lengths[0] >= 2
    assert 15 < lengths[250] < 25
    assert 100 < lengths[-1] <= 180


def of(*rates: float, cores: float = 2.0) -> list[Trial]:
    """Turns of these tokens per second."""
    return [Trial(rate, cores) for rate in rates]


class TestRecommend:
    """The candidate that a server should run with."""

    def test_fastest(self) -> None:
        """By its median, which one lucky round does not change."""
        turns = {Candidate(2, 1, 128): of(100, 100, 900), Candidate(2, 1, 256): of(120, 120, 120)}
        assert recommend(turns) == Candidate(2, 1, 256)

    def test_equals(self) -> None:
        """Among equals the smallest passes: who comes then waits the least."""
        turns = {Candidate(2, 1, size): of(100 + size / 512) for size in (128, 256, 512)}
        assert recommend(turns) == Candidate(2, 1, 128)

    def test_threads(self) -> None:
        """More threads in a lane are measured and shown, and not what a busy server has."""
        turns = {Candidate(1, 2, 512): of(200), Candidate(2, 1, 128): of(100)}
        assert recommend(turns) == Candidate(2, 1, 128)
        _, first, second = table(turns, 2).splitlines()
        assert first.split() == ["1", "2", "512", "200", "1.00"]
        assert second.split() == ["2", "1", "128", "100", "0.50"]


def test_had() -> None:
    """How much of the cores was free shows where all of them were asked for."""
    turns = {
        Candidate(1, 1, 128): of(100, cores=1.0),
        Candidate(2, 1, 128): of(100, 100, 100, cores=1.2) + of(100, cores=2.0),
        Candidate(2, 1, 256): of(100, cores=1.1),
    }
    assert had(turns, 2) == pytest.approx(0.6)
    assert table(turns, 2).endswith("only 60% of the CPU was available: measure on an idle host")
    assert "only" not in table({Candidate(2, 1, 64): of(100)}, 2)


@pytest.mark.parametrize("lanes", [1, 3])
def test_turn(tiny_artifacts: Path, lanes: int) -> None:
    """Passes run in that many lanes at once, each within its tokens; what they ran is counted."""
    model, _ = load_model(ModelSpec("tiny"), tiny_artifacts / "tiny", "cpu")
    sequences = model.tokenizer.encode(texts(200)).sequences
    barrier, sizes = threading.Barrier(lanes, timeout=30), []

    def together(passed: list[Ints]) -> None:
        sizes.append(len(passed) * max(map(len, passed)))
        barrier.wait()

    opened = tuning.Opened(model, together)
    assert tuning.turn(Candidate(lanes, 1, 64), opened, sequences, 2, 0.0).rate > 0
    assert len(sizes) == lanes
    assert max(sizes) <= 64


class TestCommand:
    """The real process, on a tiny model."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        """A models.toml of two models, with an artifact of the second that no word fails."""
        directory = tmp_path / "artifacts" / "tiny"
        tiny.write(directory)
        tokenizer = json.loads((directory / artifact.TOKENIZER).read_text())
        del tokenizer["model"]["vocab"]["fail"]
        (directory / artifact.TOKENIZER).write_text(json.dumps(tokenizer))
        (directory / artifact.MANIFEST).unlink()
        artifact.write(directory, tiny.manifest())
        tiny.models_toml(tmp_path / "models.toml", {"absent": "", "tiny": ""}, "port = 1  # one")
        return tmp_path

    def flags(self, place: Path) -> tuple[str | Path, ...]:
        """Where the inputs are."""
        return ("--models", place / "models.toml", "--artifacts", place / "artifacts")

    def test_write(self, place: Path) -> None:
        """It shows every candidate, and writes the two keys beside what was there."""
        done = run("tune", *self.flags(place), "--seconds", "3", "--write")
        assert done.returncode == 0, done.stderr
        cores = host.read().cores.value
        rows = [line.split() for line in done.stdout.splitlines()]
        measured = [tuple(map(int, row[:3])) for row in rows if len(row) == 5 and row[0].isdigit()]
        assert {Candidate(*row) for row in measured} == set(candidates(cores))
        text = (place / "models.toml").read_text()
        server = tomllib.loads(text)["server"]
        assert f"lanes = {server['lanes']}\ntokens_per_pass = {server['tokens_per_pass']}\n" in text
        assert f"\nlanes = {server['lanes']}\n" in done.stdout
        assert "port = 1  # one" in text
        report = json.loads(run("doctor", "--json", *self.flags(place), "--model", "tiny").stdout)
        for key in ("lanes", "tokens_per_pass"):
            assert report["settings"][key] == {"value": server[key], "origin": "[server]"}

    def test_only_shown(self, place: Path) -> None:
        """Without --write models.toml stays as it was."""
        before = (place / "models.toml").read_bytes()
        done = run("tune", *self.flags(place), "--model", "tiny", "--seconds", "1")
        assert done.returncode == 0, done.stderr
        assert "not written" in done.stdout
        assert (place / "models.toml").read_bytes() == before

    @pytest.mark.parametrize(
        ("arguments", "env", "status"),
        [
            (("--seconds", "0"), {}, Exit.USAGE),
            (("--seconds", "nan"), {}, Exit.USAGE),
            (("--seconds", "soon"), {}, Exit.USAGE),
            (("--model", "tiny", "--model", "absent"), {}, Exit.USAGE),
            (("--model", "other"), {}, Exit.USAGE),
            (("--model", "absent"), {}, Exit.NOINPUT),
            ((), {"EMBEDSERVE_PROVIDER": "cuda"}, Exit.USAGE),
        ],
    )
    def test_refused(
        self, place: Path, arguments: tuple[str, ...], env: dict[str, str], status: Exit
    ) -> None:
        """What cannot be measured is said at once."""
        done = run("tune", *self.flags(place), *arguments, **env)
        assert done.returncode == status
        assert done.stdout == ""

    def test_a_pass_that_fails(self, place: Path, tiny_artifacts: Path) -> None:
        """It ends the command in one line: "fail" is a word of the standard library's."""
        models = ("--models", place / "models.toml", "--artifacts", tiny_artifacts)
        done = run("tune", *models, "--seconds", "1")
        assert done.returncode == Exit.SOFTWARE
        assert "tiny: a pass failed" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_refused_before_measuring(self, place: Path) -> None:
        """A models.toml that cannot be edited is said before a minute is spent."""
        path = place / "models.toml"
        path.write_text(path.read_text().replace("[server]", '["\\u0073erver"]'))
        done = run("tune", *self.flags(place), "--write")
        assert done.returncode == Exit.CONFIG
        assert "set it by hand" in done.stderr
        assert done.stdout == ""
