"""`embedserve embed --ray` on two nodes: the bytes that one machine gives, whoever is killed."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from embedserve import artifact
from embedserve.diagnose.sample_texts import texts
from embedserve.errors import Exit
from tests import tiny
from tests.bulk.files import embed, write
from tests.conftest import MINILM
from tests.ray.clusters import embed_on, finished, start, start_on, two_nodes, until, workers

SEED = 20261124


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with two_nodes() as made:
        yield made


@pytest.fixture
def flags(tmp_path: Path) -> list[str | Path]:
    """A tiny model of the test's own."""
    tiny.write(tmp_path / "artifacts" / "tiny")
    models = tiny.models_toml(tmp_path / "models.toml", {"tiny": ""})
    return ["--models", models, "--artifacts", tmp_path / "artifacts", "--chunk-rows", "8"]


def corpus(path: Path) -> Path:
    """Rows for the tiny model, some of them bad."""
    draw = random.Random(SEED)  # noqa: S311  # the same every time
    rows = [
        {"id": f"r{i}", "text": " ".join(draw.choices("abcd", k=draw.randint(1, 6)))}
        for i in range(100)
    ]
    for place, text in ((7, "poison"), (50, ""), (93, "fail")):
        rows[place]["text"] = text
    return write(path, rows)


@pytest.mark.parametrize(
    ("source", "target"), [(".jsonl", ".npy"), (".csv", ".parquet"), (".parquet", ".jsonl")]
)
def test_the_same_bytes(
    tmp_path: Path, flags: list[str | Path], cluster: Cluster, source: str, target: str
) -> None:
    """The output and what is said of bad rows are those of one machine."""
    path = corpus(tmp_path / f"in{source}")
    here, there = tmp_path / f"here{target}", tmp_path / f"there{target}"
    done = embed(path, here, *flags)
    assert done.returncode == 0, done.stderr
    done = embed_on(cluster, path, there, *flags)
    assert done.returncode == 0, done.stderr
    assert there.read_bytes() == here.read_bytes()
    errors = [Path(f"{out}.errors.jsonl").read_bytes() for out in (here, there)]
    assert errors[0] == errors[1]
    assert errors[0].count(b"\n") == 3
    assert list(tmp_path.glob("*.parts")) == []


@pytest.mark.parametrize("way", ["path", "working-dir", "object-store"])
def test_artifacts(tmp_path: Path, flags: list[str | Path], cluster: Cluster, way: str) -> None:
    """An artifact reaches the nodes each way, and an altered one is refused on each."""
    path = corpus(tmp_path / "in.jsonl")
    done = embed_on(cluster, path, tmp_path / "out.npy", *flags, "--artifacts-by", way)
    assert done.returncode == 0, done.stderr
    graph = tmp_path / "artifacts" / "tiny" / artifact.GRAPH
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    done = embed_on(cluster, path, tmp_path / "other.npy", *flags, "--artifacts-by", way)
    assert done.returncode == Exit.CONFIG, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "model.onnx: has sha256" in last
    assert not list(tmp_path.glob("other.npy.parts/*.part"))


def test_another_artifact_on_a_node(
    tmp_path: Path, flags: list[str | Path], cluster: Cluster
) -> None:
    """By path, a node may have another artifact of that name: its vectors are not mixed in."""
    from embedserve.bulk.pipeline import How
    from embedserve.bulk.ray_cluster import Embed, EmbedTask, versions
    from embedserve.bulk.shipping import ByPath
    from embedserve.config.models_toml import ModelSpec
    from embedserve.config.settings import Settings
    from embedserve.errors import StartupError

    how = How("", "end", tiny.HIDDEN)
    task = EmbedTask(ModelSpec("tiny"), "0" * 64, how, None, Settings())  # type: ignore[arg-type]
    place = ByPath(tmp_path / "artifacts" / "tiny")
    for wanted, said in ((versions(), "the job's is 000000000000"), (("embedserve 0",) * 3, "has")):
        refused = Embed(task, place, 1, wanted)._refused
        assert isinstance(refused, StartupError)
        assert said in str(refused)


def test_stop(tmp_path: Path, flags: list[str | Path], cluster: Cluster) -> None:
    """With --on-error stop a bad row ends the job there, too."""
    path = corpus(tmp_path / "in.jsonl")
    done = embed_on(cluster, path, tmp_path / "out.npy", *flags, "--on-error", "stop")
    assert done.returncode == Exit.DATAERR
    assert "non_finite_embedding" in done.stderr or "empty_input" in done.stderr


class TestKilled:
    """Real texts, and somebody dies on the way."""

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A corpus, and beside it what one machine makes of it."""
        place = tmp_path_factory.mktemp("whole")
        rows = [{"id": i, "text": text} for i, text in enumerate(texts(600))]
        path = write(place / "in.jsonl", rows)
        done = embed(path, place / "out.parquet", *cls.flags())
        assert done.returncode == 0, done.stderr
        return place

    @staticmethod
    def flags() -> list[str | Path]:
        return ["--model", MINILM, "--chunk-rows", "20"]

    def test_a_worker(self, tmp_path: Path, whole: Path) -> None:
        """One of two that hold the model, each on a node: the bytes are the same."""
        with two_nodes() as cluster:
            out = tmp_path / "out.parquet"
            process = start_on(cluster, whole / "in.jsonl", out, *self.flags())
            until(lambda: len(list(tmp_path.glob("*.parts/*.part"))) >= 4, process)
            found = workers()
            assert len(set(found.values())) == 2, "one on each node"
            os.kill(next(iter(found)), signal.SIGKILL)
            _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
        assert out.read_bytes() == (whole / "out.parquet").read_bytes()

    def test_a_node(self, tmp_path: Path, whole: Path) -> None:
        """With all its processes."""
        with two_nodes() as cluster:
            out = tmp_path / "out.parquet"
            process = start_on(cluster, whole / "in.jsonl", out, *self.flags())
            until(lambda: len(list(tmp_path.glob("*.parts/*.part"))) >= 4, process)
            (other,) = cluster.worker_nodes
            cluster.remove_node(other, allow_graceful=False)
            _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
        assert out.read_bytes() == (whole / "out.parquet").read_bytes()

    def test_the_command(self, tmp_path: Path, whole: Path) -> None:
        """What was finished on the cluster stays; one machine goes on with it, and none twice."""
        out = tmp_path / "out.parquet"
        with two_nodes() as cluster:
            process = start_on(cluster, whole / "in.jsonl", out, *self.flags())
            until(lambda: len(list(tmp_path.glob("*.parts/*.part"))) >= 8, process)
            process.kill()
            process.communicate(timeout=60)
        finished = {path: path.stat().st_ino for path in tmp_path.glob("*.parts/*.part")}
        kept = tmp_path / "out.parquet.parts"
        process = start(whole / "in.jsonl", out, *self.flags())
        until(lambda: len(list(kept.glob("*.part"))) > len(finished), process)
        assert {path: path.stat().st_ino for path in finished} == finished
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
        assert out.read_bytes() == (whole / "out.parquet").read_bytes()


def test_a_chunk_that_kills_its_workers(
    tmp_path: Path, flags: list[str | Path], cluster: Cluster
) -> None:
    """All others are done, in later rounds, too; then it is named; mended, the job goes on."""
    rows = [{"text": "a b"}] * 100
    path = write(tmp_path / "in.jsonl", [*rows[:43], {"text": "deadly"}, *rows[44:]])
    there, here = tmp_path / "there.npy", tmp_path / "here.npy"
    done = finished(start(path, there, *flags, "--ray", cluster.address, module="tests.ray.deadly"))
    assert done.returncode == Exit.UNAVAILABLE, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "workers failed on 1 chunks, the first of them lines 41 to 48" in last
    assert len(list(tmp_path.glob("there.npy.parts/*.part"))) == 12
    assert finished(start(path, there, *flags, "--ray", cluster.address)).returncode == 0
    assert embed(path, here, *flags).returncode == 0
    assert there.read_bytes() == here.read_bytes()


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("127.0.0.1:1", Exit.UNAVAILABLE),
        ("127.0.0.1:x", Exit.UNAVAILABLE),
        ("ray://127.0.0.1:10001", Exit.USAGE),
    ],
)
def test_no_cluster(tmp_path: Path, flags: list[str | Path], address: str, status: Exit) -> None:
    """Said in a line, with a status, and nothing of the job is lost by it."""
    path = corpus(tmp_path / "in.jsonl")
    done = embed(path, tmp_path / "out.npy", *flags, "--ray", address)
    assert done.returncode == status, done.stderr
    assert address in done.stderr.splitlines()[-1]
