"""Publication: byte-identical, atomic, kept when up to date, nothing at all when it fails."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedserve import artifact
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from embedserve.system import atomic_write
from export import build, cli, graph, steps
from export.facts import Facts
from export.steps import StepProcess
from tests.export.checkpoints import bert, checkpoint, edit_json
from tests.export.conftest import Export

pytestmark = pytest.mark.filterwarnings("ignore")

SPEC = ModelSpec(name="m")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("build") / "model", bert)


@pytest.fixture(scope="module")
def made(export_model: Export, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An --out directory with the model exported."""
    out = tmp_path_factory.mktemp("made")
    export_model(SPEC, out, source)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def test_two_exports_are_byte_identical(
    export_model: Export, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files give the same bytes and fingerprint, times aside."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first = export_model(SPEC, tmp_path / "1", source)
    moved = Path(shutil.copytree(source, tmp_path / "elsewhere"))
    second = export_model(SPEC, tmp_path / "2", moved)
    assert first.manifest.fingerprint == second.manifest.fingerprint
    assert first.manifest.created == "2023-11-14T22:13:20Z"
    assert contents(tmp_path / "1" / "m") == contents(tmp_path / "2" / "m")


def test_an_artifact_up_to_date_is_kept(export_model: Export, source: Path, out: Path) -> None:
    """Same files, same wishes: nothing is touched; --force makes it anew."""
    before = contents(out / "m")
    assert export_model(SPEC, out, source).kept
    assert export_model(SPEC, out, None).kept
    assert contents(out / "m") == before
    assert not export_model(SPEC, out, source, True).kept


def test_other_wishes_make_it_anew(export_model: Export, source: Path, out: Path) -> None:
    """A changed table of models.toml, or changed files, and the artifact is made again."""
    wished = replace(SPEC, prompts={"query": "query: "})
    result = export_model(wished, out, source)
    assert not result.kept
    assert dict(result.manifest.prompts) == {"query": "query: "}


def test_changed_files_make_it_anew(
    export_model: Export, source: Path, out: Path, tmp_path: Path
) -> None:
    """--from a directory whose files differ from those exported."""
    other = Path(shutil.copytree(source, tmp_path / "other"))
    edit_json(other / "sentence_bert_config.json", max_seq_length=40)
    result = export_model(SPEC, out, other)
    assert not result.kept
    assert result.manifest.max_tokens == 40


def test_an_altered_artifact_is_made_anew(export_model: Export, source: Path, out: Path) -> None:
    """A flipped bit is not up to date."""
    path = out / "m" / artifact.GRAPH
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert not export_model(SPEC, out, source).kept
    artifact.check_files(out / "m", artifact.read(out / "m"))


def test_past_tolerance_nothing_is_published(
    export_model: Export, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 70, naming text and figures; the old artifact stays, no scratch is left."""
    monkeypatch.setattr(artifact, "TOLERANCES", {"fp32": 0.0})
    with pytest.raises(StartupError, match=r"text \d+ \('.*differ by .*cosine") as caught:
        export_model(SPEC, tmp_path, source)
    assert caught.value.status == Exit.SOFTWARE
    assert not (tmp_path / "m").exists()
    assert list((tmp_path / build.HOUSEKEEPING / "m").iterdir()) == [
        tmp_path / build.HOUSEKEEPING / "m" / "lock"
    ]


def test_a_graph_of_another_model_is_not_published(
    export_model: Export, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate is of the staged bytes: a graph that computes otherwise is found."""
    whole = graph.finish

    def broken(step: StepProcess, found: Facts, stage: Path, precision: str) -> graph.Graph:
        import onnx

        written = whole(step, found, stage, precision)
        model = onnx.load(stage / artifact.GRAPH)
        tables = {table.name for table in written.tables}  # these are read from the weights' file
        tensors = [t for t in model.graph.initializer if t.name not in tables]
        tensor = max(tensors, key=lambda t: len(t.raw_data))
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[:, 0] += np.float32(1e-2)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(model, stage / artifact.GRAPH)
        return written

    monkeypatch.setattr(graph, "finish", broken)
    with pytest.raises(StartupError, match="nothing was published"):
        export_model(SPEC, tmp_path, source)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_disk_is_one_line(
    export_model: Export, number: int, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 73 with the system's words; the artifact from before stays whole."""
    before = contents(out / "m")

    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(atomic_write, "sync", fail)
    with pytest.raises(StartupError, match=os.strerror(number)) as caught:
        export_model(SPEC, out, source, True)
    assert caught.value.status == Exit.CANTCREAT
    assert contents(out / "m") == before


def test_words_of_a_full_disk_are_understood(
    export_model: Export, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries in C++ raise a RuntimeError that says it only in words."""

    def full(step: StepProcess, found: Facts, stage: Path, precision: str) -> graph.Graph:
        try:
            raise RuntimeError("write failed: No space left on device")
        except RuntimeError as error:
            raise StartupError("cannot export", Exit.DATAERR) from error

    monkeypatch.setattr(graph, "finish", full)
    with pytest.raises(StartupError, match="No space left") as caught:
        export_model(SPEC, tmp_path, source)
    assert caught.value.status == Exit.CANTCREAT


def test_leftovers_of_a_killed_run_are_cleared(
    export_model: Export, source: Path, out: Path
) -> None:
    """What a killed export staged goes with the next run."""
    left = out / build.HOUSEKEEPING / "m" / "work-dead"
    (left / "m").mkdir(parents=True)
    (left / "m" / "model.onnx").write_bytes(b"half")
    assert export_model(SPEC, out, source).kept
    assert not left.exists()


def test_a_second_export_of_the_model_waits(export_model: Export, source: Path, out: Path) -> None:
    """Two at once do not mix: the second waits, then finds the first one's artifact."""
    said = threading.Event()
    with (out / build.HOUSEKEEPING / "m" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results: list[build.Result] = []
        second = threading.Thread(
            target=lambda: results.append(
                export_model(SPEC, out, source, False, lambda m: said.set())
            )
        )
        second.start()
        assert said.wait(10)
        assert not results
        fcntl.flock(lock, fcntl.LOCK_UN)
    second.join(30)
    assert results[0].kept


def test_golden_vectors_are_few_and_the_reference_s(made: Path) -> None:
    """Several short texts and one of medium length, as artifact.read_golden gives them back."""
    golden = artifact.read_golden(made / "m")
    assert 6 <= len(golden.texts) <= 8
    assert golden.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(golden.vectors, axis=1), 1, rtol=0, atol=1e-5)


def test_the_certificate_names_figures_and_versions(made: Path) -> None:
    """What was compared with what, how near, with which libraries."""
    parity = artifact.read(made / "m").parity
    assert parity is not None
    assert parity.texts >= 70
    assert 0 < parity.max_abs_difference <= parity.tolerance == 1e-5
    assert parity.min_cosine > 0.999999
    assert {"torch", "transformers", "onnxruntime", "sentence-transformers"} <= set(parity.versions)


MODELS = '[models.m]\n[models.other]\nrepository = "a/b"\nrevision = "{}"\n'.format("0" * 40)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from export import sources

    monkeypatch.setattr(sources, "_probe", lambda url: "no network")
    path = tmp_path / "models.toml"
    path.write_text(MODELS)
    return path


def run(models: Path, out: Path, *arguments: str) -> int:
    return cli.main([*arguments, "--models", str(models), "--out", str(out)])


def test_without_names_one_model_is_enough(
    models: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be had is named with its reason, and the others go on: exit 0."""
    assert run(models, out) == 0
    table = capsys.readouterr().out
    assert "kept" in table
    assert "other  failed  " in table
    assert "no network" in table


def test_a_named_model_that_fails_gives_its_status(models: Path, out: Path) -> None:
    """The others are made nevertheless."""
    assert run(models, out, "other", "m") == Exit.UNAVAILABLE


def test_no_model_at_all_gives_the_failure_s_status(models: Path, tmp_path: Path) -> None:
    """Without any artifact the run has failed."""
    assert run(models, tmp_path / "empty") == Exit.UNAVAILABLE


ERRORS = {
    "unknown-name": (["none"], Exit.USAGE, ("none", "m, other")),
    "unknown-flag": (["--fast"], Exit.USAGE, ("--fast",)),
    "no-directory": (["m", "--from", "nowhere"], Exit.NOINPUT, ("nowhere",)),
    "no-models": (["--models", "nowhere.toml"], Exit.NOINPUT, ("nowhere.toml",)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_usage_errors_are_one_line(
    name: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error and the status of sysexits.h."""
    arguments, status, named = ERRORS[name]
    try:
        found = cli.main(["--models", str(models), "--out", str(tmp_path / "x"), *arguments])
    except SystemExit as exited:
        found = int(exited.code or 0)
    said = capsys.readouterr().err
    assert found == status
    assert said.count("\n") == 1
    for part in named:
        assert part in said


def test_from_with_several_models_looks_into_their_directories(
    models: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DIR/NAME when DIR is not a model itself; a single model is for a single name."""
    assert run(models, tmp_path / "x", "--from", str(source)) == Exit.USAGE
    shutil.copytree(source, tmp_path / "all" / "m")
    assert run(models, tmp_path / "x", "m", "--from", str(tmp_path / "all")) == 0
    assert "exported" in capsys.readouterr().out


def test_from_a_plain_transformers_directory(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing is said of the directory that was named, not only of the one looked for."""
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    assert run(models, tmp_path / "x", "other", "--from", str(plain)) == Exit.NOINPUT
    assert f"no such directory, and {plain} has no modules.json" in capsys.readouterr().out


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_weights_stand_beside_the_graph(out: Path) -> None:
    """Large tensors are in a file that can be mapped, readable by whoever reads the graph."""
    weights, graph_file = (out / "m" / name for name in (artifact.WEIGHTS, artifact.GRAPH))
    assert weights.stat().st_size > 0
    assert weights.stat().st_mode == graph_file.stat().st_mode
    assert {artifact.WEIGHTS, artifact.GRAPH} < set(artifact.read(out / "m").files)


def test_tables_are_read_in_place(out: Path) -> None:
    """Embeddings of words and positions stand in the manifest; nothing that is multiplied does."""
    import onnx

    manifest = artifact.read(out / "m")
    mapped = artifact.map_tables(out / "m", manifest)
    tensors = {t.name: t for t in onnx.load(out / "m" / artifact.GRAPH).graph.initializer}
    assert {name.split(".")[-2] for name in mapped} >= {"word_embeddings"}
    assert all("embeddings" in name for name in mapped)
    for name, table in mapped.items():
        np.testing.assert_array_equal(table, onnx.numpy_helper.to_array(tensors[name]))


def test_without_optimum_s_folder(
    export_model: Export, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment made without it: one line that names the folder and what makes it."""
    monkeypatch.setattr(steps, "OPTIMUM", tmp_path / "none")
    with pytest.raises(StartupError, match=r"none: no such folder.*make \.venv-export") as caught:
        export_model(SPEC, tmp_path / "out", source)
    assert caught.value.status == Exit.CONFIG
