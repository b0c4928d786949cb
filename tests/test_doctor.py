"""`embedserve doctor`: the whole report whatever is wrong, and a server's own exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from embedserve import __version__, artifact
from embedserve.config.models_toml import Config
from embedserve.config.settings import Settings, origin
from embedserve.diagnose.examination import ArtifactState, Report
from embedserve.errors import Exit
from embedserve.system import host
from embedserve.system.host import Host, Known
from tests import tiny
from tests.conftest import SERVE, environment, run

KEYS = {
    "version", "python", "onnxruntime", "provider", "host", "settings", "models", "advice",
    "problems", "status", "memory_bound",
}  # fmt: skip
MODEL_KEYS = {
    "name", "artifact", "present", "intact", "problem", "bytes", "fingerprint", "precision",
    "dimension", "max_tokens", "parity", "quality",
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A models.toml of two models, with an artifact of the first."""
    tiny.write(tmp_path / "artifacts" / "tiny")
    tiny.models_toml(tmp_path / "models.toml", {"tiny": "", "absent": ""}, "max_connections = 10")
    return tmp_path


def flags(place: Path) -> tuple[str | Path, ...]:
    """Where the inputs are."""
    return ("--models", place / "models.toml", "--artifacts", place / "artifacts")


def examined(place: Path, *more: str, **env: str) -> tuple[int, dict[str, Any]]:
    """Exit status and the report as JSON."""
    done = run("doctor", "--json", *flags(place), *more, **env)
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["status"] == done.returncode
    assert set(report) == KEYS
    return done.returncode, report


class TestHealthy:
    """Everything is there."""

    def test_json(self, place: Path) -> None:
        """Status 0, and each model with the facts of its manifest."""
        status, report = examined(place, "--model", "tiny")
        manifest = artifact.read(place / "artifacts" / "tiny")
        assert status == 0
        assert report["problems"] == []
        (model,) = report["models"]
        assert set(model) == MODEL_KEYS
        assert model["fingerprint"] == manifest.fingerprint
        assert (model["present"], model["intact"], model["problem"]) == (True, True, None)
        assert (model["dimension"], model["max_tokens"]) == (tiny.HIDDEN, 8)
        assert model["bytes"] == sum(f.bytes for f in manifest.files.values())
        assert report["version"] == __version__
        assert report["provider"] == {"name": "CPUExecutionProvider", "available": True}
        assert report["settings"]["lanes"]["value"] == host.read().cores.value

    def test_text(self, place: Path) -> None:
        """For people: the same, in columns, with the verdict in the last line."""
        done = run("doctor", *flags(place), "--model", "tiny")
        assert done.returncode == 0
        assert done.stderr == ""
        assert re.search(r"^  lanes +\d+ +default: one per core", done.stdout, re.MULTILINE)
        assert re.search(r"^  max_connections +10 +\[server\]$", done.stdout, re.MULTILINE)
        assert re.search(r"^  artifact +intact, ", done.stdout, re.MULTILINE)
        assert "embedserve tune" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("can serve")

    def test_reader_that_leaves(self, place: Path) -> None:
        """`doctor | head` ends like any command whose reader has seen enough: no traceback."""
        reader, writer = os.pipe()
        os.close(reader)
        command = [SERVE, "doctor", *flags(place)]
        with os.fdopen(writer, "wb") as closed:
            done = subprocess.run(
                command, stdout=closed, stderr=subprocess.PIPE, env=environment(), timeout=60
            )
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")

    def test_skip_missing(self, place: Path) -> None:
        """A missing artifact that may be missing is advice, not a problem."""
        status, report = examined(place, "--skip-missing")
        assert status == 0
        assert [m["present"] for m in report["models"]] == [True, False]
        assert any("python -m export absent" in line for line in report["advice"])

    def test_an_optional_model(self, place: Path) -> None:
        """One without an artifact is neither a problem nor advice."""
        path = place / "models.toml"
        path.write_text(path.read_text() + "optional = true\n")
        assert path.read_text().index("absent") > path.read_text().index("tiny")
        status, report = examined(place)
        assert status == 0
        assert [m["name"] for m in report["models"]] == ["tiny"]
        assert not any("absent" in line for line in report["advice"])

    def test_origins(self, place: Path) -> None:
        """Each setting says where it was set; the later place wins."""
        env = {"EMBEDSERVE_TOKENS_PER_PASS": "128"}
        _, report = examined(place, "--lanes", "3", **env)
        assert set(report["settings"]) == {f.name for f in fields(Settings)}
        set_here = {
            "provider": {"value": "cpu", "origin": "default"},
            "lanes": {"value": 3, "origin": "--lanes"},
            "tokens_per_pass": {"value": 128, "origin": "EMBEDSERVE_TOKENS_PER_PASS"},
            "max_connections": {"value": 10, "origin": "[server]"},
        }
        assert set_here.items() <= report["settings"].items()
        assert not any("embedserve tune" in line for line in report["advice"])

    def test_what_a_provider_serves_best(self, place: Path) -> None:
        """Lanes and budget that are not set are the provider's own, and it says so."""
        _, report = examined(place, "--provider", "cuda")
        # `tune` measures the CPU alone, and a device's memory holds the passes.
        assert not any("tune" in line for line in report["advice"])
        _, on_cpu = examined(place, "--tokens-per-pass", "16384", "--lanes", "2")
        bounds = [each["memory_bound"]["passes"] for each in (report, on_cpu)]
        assert bounds[0] < bounds[1]
        assert report["settings"]["lanes"] == {"value": 2, "origin": "default: for cuda"}
        assert report["settings"]["tokens_per_pass"]["value"] == 16_384
        _, report = examined(place)
        assert report["settings"]["tokens_per_pass"]["value"] == 256

    def test_memory_bound(self, place: Path) -> None:
        """The most memory is the sum that a server prints: settings count as they are set."""
        allowed = ("--max-pending-mb", "7", "--max-body-bytes", "1000000")
        _, report = examined(place, "--model", "tiny", *allowed)
        bound = report["memory_bound"]
        # The largest request: texts of four bytes a character with their UTF-8, and the answer.
        largest = 5 * 1_000_000 + 2048 * (4 * 20 + 1000)
        assert bound["requests_in_flight"] == largest + 7_000_000 // 8
        assert bound["connections"] == 10 * 80_000
        assert bound["most"] == sum(v for k, v in bound.items() if k != "most")
        text = run("doctor", *flags(place), "--model", "tiny", *allowed).stdout
        assert re.search(rf"^  at most +{bound['most'] / 1e6:.0f} MB$", text, re.MULTILINE)

    def test_no_session(self, place: Path) -> None:
        """It opens no session: a graph that cannot be loaded, but is the manifest's, is intact."""
        directory = place / "artifacts" / "tiny"
        (directory / "manifest.json").unlink()
        (directory / "model.onnx").write_bytes(b"no graph")
        artifact.write(directory, tiny.manifest())
        assert examined(place, "--model", "tiny")[0] == 0


def _altered(place: Path) -> None:
    graph = place / "artifacts" / "tiny" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")


def _no_list(place: Path) -> None:
    (place / "models.toml").unlink()


def _no_toml(place: Path) -> None:
    (place / "models.toml").write_text("[models")


class TestNot:
    """A server would not start: its own exit status, after the whole report."""

    CASES = (
        pytest.param(lambda _: None, (), {}, Exit.NOINPUT, "export absent", id="no artifact"),
        pytest.param(_altered, ("--model", "tiny"), {}, Exit.CONFIG, "model.onnx", id="altered"),
        pytest.param(_no_list, (), {}, Exit.NOINPUT, "models.toml", id="no models.toml"),
        pytest.param(_no_toml, (), {}, Exit.CONFIG, "TOML", id="malformed models.toml"),
        pytest.param(
            lambda _: None, ("--model", "x"), {}, Exit.USAGE, "--model x", id="unknown model"
        ),
        pytest.param(
            lambda _: None,
            ("--model", "tiny", "--provider", "cuda"),
            {},
            Exit.UNAVAILABLE,
            "onnxruntime-gpu",
            id="no such provider",
        ),
        pytest.param(
            lambda _: None,
            ("--model", "tiny", "--api-keys-file", "/nowhere/keys"),
            {},
            Exit.NOINPUT,
            "/nowhere/keys",
            id="no file of keys",
        ),
        pytest.param(
            lambda _: None,
            ("--model", "tiny"),
            {"EMBEDSERVE_LANES": "many"},
            Exit.CONFIG,
            "EMBEDSERVE_LANES",
            id="wrong variable",
        ),
        pytest.param(
            lambda _: None,
            ("--model", "tiny"),
            {"EMBEDSERVE_API_KEYS": "short"},
            Exit.CONFIG,
            "EMBEDSERVE_API_KEYS",
            id="wrong key",
        ),
    )

    @pytest.mark.parametrize(("spoil", "more", "env", "expected", "said"), CASES)
    def test_status(
        self,
        place: Path,
        spoil: Callable[[Path], None],
        more: tuple[str, ...],
        env: dict[str, str],
        expected: Exit,
        said: str,
    ) -> None:
        """The status and the message of the first problem, and every other part of the report."""
        spoil(place)
        status, report = examined(place, *more, **env)
        assert status == expected
        assert said in report["problems"][0]
        assert report["host"]["affinity"]["value"] >= 1
        text = run("doctor", *flags(place), *more, **env)
        assert text.returncode == expected
        assert f"cannot serve: {report['problems'][0]}" in text.stdout

    def test_serve_agrees(self, place: Path) -> None:
        """`serve` ends with the same status and the same line."""
        _altered(place)
        _, report = examined(place, "--model", "tiny")
        done = run("serve", "--port", "0", *flags(place), "--model", "tiny")
        assert done.returncode == report["status"]
        assert report["problems"][0] in done.stderr


def found(**parts: Any) -> Report:
    """A report of a roomy host without models, some parts replaced."""
    roomy: dict[str, Any] = {
        "affinity": Known(8, "affinity"),
        "quota": None,
        "memory": Known(2**36, "MemTotal"),
        "descriptors": Known(2**20, "RLIMIT_NOFILE"),
        "architecture": Known("x86_64", "uname"),
        "cpu": Known("A CPU", "/proc/cpuinfo"),
        "instructions": Known(("avx2", "fma"), "/proc/cpuinfo"),
    }
    settings = parts.pop("settings", Settings())
    models = parts.pop("models", ())
    origins = {"lanes": "[server]", "tokens_per_pass": "[server]"} | parts.pop("origins", {})
    return Report(Host(**(roomy | parts)), settings, origins, (), models, ())


class TestAdvice:
    """What an operator should know."""

    def test_none(self) -> None:
        """Of a host with room for all, nothing."""
        assert found().advice() == []

    @pytest.mark.parametrize(
        ("parts", "said"),
        [
            ({"quota": Known(1.5, "cpu.max")}, "quota of 1.5 cores (cpu.max) is below the 8"),
            ({"settings": Settings(lanes=9)}, "lanes = 9 is more than the 8 cores"),
            ({"descriptors": Known(1024, "RLIMIT_NOFILE")}, "max_connections = 10000"),
            ({"memory": Known(2**26, "memory.max")}, "memory is 64 MiB (memory.max)"),
            ({"settings": Settings(host="::")}, "anyone who reaches ::"),
            ({"origins": {"lanes": "default", "tokens_per_pass": "default"}}, "embedserve tune"),
        ],
        ids=["quota", "lanes", "descriptors", "memory", "no keys", "not tuned"],
    )
    def test_one(self, parts: dict[str, Any], said: str) -> None:
        """One line for each limit that is too low, with the figure and where it stands."""
        (line,) = found(**parts).advice()
        assert said in line

    def test_memory_of_models(self) -> None:
        """The artifacts' files count."""
        record = artifact.FileRecord("", 2**30)
        manifest = tiny.manifest(files={"weights.bin": record})
        model = ArtifactState("tiny", Path("tiny"), manifest, None)
        assert found(models=(model,)).advice() == []
        (line,) = found(models=(model,), memory=Known(2**30, "memory.max")).advice()
        assert "need about 1152" in line

    def test_memory_of_requests(self) -> None:
        """Room for the models, and not for all that the settings let in: what to lower."""
        model = ArtifactState("tiny", Path("tiny"), tiny.manifest(), None)
        (line,) = found(models=(model,), memory=Known(2**28, "memory.max")).advice()
        assert "268 MB available (memory.max): lower max_connections" in line

    def test_memory_of_processes(self) -> None:
        """Each has the models and the limits for itself."""
        model = ArtifactState("tiny", Path("tiny"), tiny.manifest(), None)
        one = found(models=(model,)).footprint
        assert one is not None
        enough = Known(2 * one.most, "memory.max")
        two, three = (Settings(processes=count, lanes=1) for count in (2, 3))
        assert found(models=(model,), memory=enough, settings=two).advice() == []
        (line,) = found(models=(model,), memory=enough, settings=three).advice()
        assert "in each process; that may exceed" in line
        assert "(memory.max, for each of 3 processes)" in line

    @pytest.mark.parametrize(("instructions", "lines"), [("avx2", 1), ("avx512_vnni", 0)])
    def test_int8(self, instructions: str, lines: int) -> None:
        """Said where the processor gains little from it."""
        model = ArtifactState("tiny", Path("tiny"), tiny.manifest(precision="int8"), None)
        flags = Known(("avx2", instructions), "/proc/cpuinfo")
        advice = found(models=(model,), instructions=flags).advice()
        assert ["only about 20 % faster" in line for line in advice] == [True] * lines

    def test_keys(self) -> None:
        """With keys a public address is nothing to say."""
        assert replace(found(settings=Settings(host="::")), has_keys=True).advice() == []

    @pytest.mark.parametrize(("architecture", "lines"), [("x86_64", 1), ("aarch64", 0)])
    def test_no_avx2(self, architecture: str, lines: int) -> None:
        """Missed on x86-64 alone."""
        old = Known(("fma",), "/proc/cpuinfo")
        advice = found(instructions=old, architecture=Known(architecture, "uname")).advice()
        assert ["AVX2" in line for line in advice] == [True] * lines


@pytest.mark.parametrize(
    ("server", "env", "given", "place"),
    [
        ({}, {}, {}, "default"),
        ({"max_wait": 1.0}, {}, {}, "[server]"),
        ({"max_wait": 1.0}, {"EMBEDSERVE_MAX_WAIT": "2"}, {}, "EMBEDSERVE_MAX_WAIT"),
        ({"max_wait": 1.0}, {"EMBEDSERVE_MAX_WAIT": "2"}, {"max_wait": "3"}, "--max-wait"),
    ],
    ids=["default", "file", "environment", "flag"],
)
def test_origin(
    server: dict[str, Any], env: dict[str, str], given: dict[str, str], place: str
) -> None:
    """Where a setting's value comes from, as `merge` decides it."""
    assert origin("max_wait", Config(server, {}, {}), env, given) == place
