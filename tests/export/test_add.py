"""`python -m export add`: what it writes, what it says, what it refuses before a download."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from embedserve import artifact
from embedserve.artifact import sha256
from embedserve.config import models_toml
from embedserve.errors import Exit
from export import add, catalogue, cli, sources
from export.families.registry import FAMILIES
from tests.export.hub import COMMIT, Hub, Model, from_directory, serving

E5 = "intfloat/e5-small-v2"
OTHER = "f" * 40
MODELS = """\
# The list.   Odd   spacing stays.
[models.first]  # and so does this
finishing = [ "normalize" ]

[aliases.short]
model = "first"

[server]
port = 5000 # last
"""
MODULES: list[dict[str, Any]] = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
NORMALIZE = {
    "idx": 2,
    "name": "2",
    "path": "2_Normalize",
    "type": "sentence_transformers.models.Normalize",
}


def files(changed: Mapping[str, bytes] | None = None, without: str = "") -> dict[str, bytes]:
    """The files of a model on the hub, as far as `add` reads them."""
    given = {
        "modules.json": json.dumps(MODULES).encode(),
        "config.json": b'{"model_type": "bert"}',
        "1_Pooling/config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": b"weights",
        "README.md": b"card",
        "onnx/model.onnx": b"another engine's",
        "train_results.json": b"{}",
        **(changed or {}),
    }
    return {name: content for name, content in given.items() if name != without}


class Export:
    """In the place of an export: validates the table, fetches the files, and ends as told."""

    def __init__(self, status: int = 0, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.status, self.meanwhile = status, meanwhile
        self.commands: list[Sequence[str]] = []
        self.spec: models_toml.ModelSpec | None = None

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(command)
        pickles = "--convert-pickle" in command
        pairs = [word for word in command[1:] if word != "--convert-pickle"]
        options = dict(zip(pairs[::2], pairs[1::2], strict=True))
        self.spec = models_toml.read(Path(options["--models"])).models[command[0]]
        source = options.get("--from")
        directory = Path(source) if source else None
        sources.open(self.spec, directory, Path("unused"), pickles=pickles)
        self.meanwhile()
        return self.status


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models.toml"
    path.write_text(MODELS)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with serving({E5: Model(files())}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "given"
    for name, content in files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def run(models: Path, *arguments: str, export: Export | None = None) -> int:
    return add.main([*arguments, "--models", str(models)], export or Export())


def table(models: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(models.read_text())["models"][name]
    return found


# -- what is written ---------------------------------------------------------------------------


def test_a_table_is_complete(hub: Hub, models: Path) -> None:
    """Repository, commit, the card's prompts, and the digests of the files that matter."""
    export = Export()
    assert run(models, E5, export=export) == 0
    found = table(models, "e5-small-v2")
    assert found.pop("sha256").keys() == {
        "modules.json",
        "config.json",
        "1_Pooling/config.json",
        "tokenizer.json",
        "model.safetensors",
    }
    assert found == {
        "repository": E5,
        "revision": COMMIT,
        "prompts": {"query": "query: ", "passage": "passage: "},
    }
    assert export.spec == models_toml.read(models).models["e5-small-v2"]


def test_all_that_was_in_the_file_stays(hub: Hub, models: Path) -> None:
    """Every byte, comments and order included, and the file's mode; the new table follows."""
    models.chmod(0o640)
    assert run(models, E5) == 0
    text = models.read_text()
    assert text.startswith(MODELS)
    page = catalogue.read().models[E5].page
    assert f"files do not: {page}\nprompts" in text.removeprefix(MODELS)
    assert stat.S_IMODE(models.stat().st_mode) == 0o640
    assert [path.name for path in models.parent.glob("*models.toml*")] == ["models.toml"]


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/4", OTHER])
def test_a_revision_becomes_its_commit(hub: Hub, models: Path, revision: str) -> None:
    """A branch, a tag, a pull request or a commit: the table has the commit."""
    refs = {"v1.0": OTHER, "refs/pr/4": OTHER, OTHER: OTHER}
    hub.models[E5] = Model(files(), refs=refs)
    assert run(models, E5, "--revision", revision) == 0
    expected = COMMIT if revision == "main" else OTHER
    assert table(models, "e5-small-v2")["revision"] == expected


def test_as_gives_another_name(hub: Hub, models: Path) -> None:
    """The table has the name that --as gives."""
    assert run(models, E5, "--as", "e5.small") == 0
    assert table(models, "e5.small")["repository"] == E5


def test_a_model_that_was_renamed_has_its_new_name(hub: Hub, models: Path) -> None:
    """The hub forwards old names; a table that pins one would depend on that."""
    hub.renamed["old/e5-small-v2"] = E5
    assert run(models, "old/e5-small-v2") == 0
    assert table(models, "e5-small-v2")["repository"] == E5


def test_what_the_files_say_is_not_written_again(
    hub: Hub, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts and steps after pooling of the files count; told with the file that has them."""
    name = "nomic-ai/nomic-embed-text-v1.5"
    declared = {"prompts": {"query": "search_query: "}}
    hub.models[name] = Model(
        files(
            {
                "modules.json": json.dumps([*MODULES, NORMALIZE]).encode(),
                "config_sentence_transformers.json": json.dumps(declared).encode(),
            }
        )
    )
    assert run(models, name) == 0
    found = table(models, "nomic-embed-text-v1.5")
    assert found.keys() == {"repository", "revision", "matryoshka", "sha256"}
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "config_sentence_transformers.json" in rows["prompts"]
    assert "modules.json: Normalize" in rows["finishing"]
    assert rows["matryoshka"].split()[:3] == ["matryoshka", "catalogue", "768,"]
    assert rows["catalogue:"].split()[1] == catalogue.read().models[name].page


def test_empty_prompts_are_none(hub: Hub, models: Path) -> None:
    """sentence-transformers writes empty prompts by itself: the card's are then missing."""
    declared = b'{"prompts": {"query": "", "document": ""}}'
    hub.models[E5] = Model(files({"config_sentence_transformers.json": declared}))
    assert run(models, E5) == 0
    assert table(models, "e5-small-v2")["prompts"]["query"] == "query: "


def test_a_model_without_an_entry_says_that_its_card_wants_reading(
    hub: Hub, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says that nobody here has read it, and what to look for."""
    hub.models["me/mine"] = Model(files())
    assert run(models, "me/mine") == 0
    assert table(models, "mine").keys() == {"repository", "revision", "sha256"}
    assert "not in the catalogue" in capsys.readouterr().out


def test_a_lower_limit_and_a_task_are_written(hub: Hub, models: Path) -> None:
    """The card's limit, unless the files have it as well; the task that the operator chose."""
    own = {"sentence_bert_config.json": b'{"max_seq_length": 512}'}
    hub.models["intfloat/e5-mistral-7b-instruct"] = Model(files())
    hub.models["nomic-ai/nomic-embed-text-v2-moe"] = Model(files(own))
    hub.models["jinaai/jina-embeddings-v3"] = Model(files())
    assert run(models, "intfloat/e5-mistral-7b-instruct") == 0
    assert run(models, "nomic-ai/nomic-embed-text-v2-moe") == 0
    assert run(models, "jinaai/jina-embeddings-v3", "--task", "text-matching") == 0
    assert table(models, "e5-mistral-7b-instruct")["max_tokens"] == 4096
    assert "max_tokens" not in table(models, "nomic-embed-text-v2-moe")
    assert table(models, "jina-embeddings-v3")["task"] == "text-matching"


def test_edits_made_during_the_export_stay(hub: Hub, models: Path) -> None:
    """models.toml is read again when the export is done: it can take minutes."""
    edited = MODELS.replace("5000", "6000")
    export = Export(meanwhile=lambda: models.write_text(edited))
    assert run(models, E5, export=export) == 0
    assert models.read_text().startswith(edited)
    assert table(models, "e5-small-v2")["repository"] == E5


# -- a directory -------------------------------------------------------------------------------


def test_a_directory_needs_no_hub(models: Path, directory: Path) -> None:
    """Only digests and the catalogue's facts: nothing says where the files can be had."""
    export = Export()
    assert run(models, E5, "--from", str(directory), export=export) == 0
    found = table(models, "e5-small-v2")
    assert found.keys() == {"prompts", "sha256"}
    assert found["sha256"]["model.safetensors"] == sha256(directory / "model.safetensors")
    assert list(export.commands[0][-2:]) == ["--from", str(directory)]


def test_a_directory_with_a_commit_is_the_hub_s(models: Path, directory: Path) -> None:
    """OWNER/NAME and a whole commit say where others can have the files."""
    assert run(models, E5, "--from", str(directory), "--revision", OTHER) == 0
    found = table(models, "e5-small-v2")
    assert (found["repository"], found["revision"]) == (E5, OTHER)


def test_a_directory_alone_has_its_own_name(models: Path, directory: Path) -> None:
    """Without OWNER/NAME and --as, the name is the directory's."""
    assert run(models, "--from", str(directory)) == 0
    assert table(models, "given").keys() == {"sha256"}


# -- what is refused ---------------------------------------------------------------------------

JINA = json.dumps([{**MODULES[0], "type": "custom_st.Transformer"}, MODULES[1]]).encode()
PICKLE = Model(files({"pytorch_model.bin": b"pickle"}, without="model.safetensors"))
REMOTE = b'{"model_type": "odd", "auto_map": {"AutoModel": "modeling.Odd"}}'


@pytest.mark.parametrize(
    ("model", "said", "status"),
    [
        pytest.param(None, "no such model, or it is private", Exit.UNAVAILABLE, id="missing"),
        pytest.param(
            Model(files(), private=True), "or it is private", Exit.UNAVAILABLE, id="private"
        ),
        pytest.param(Model(files(), gated=True), "is gated: accept", Exit.UNAVAILABLE, id="gated"),
        pytest.param(
            Model(files(without="modules.json")),
            "not a sentence-transformers",
            Exit.DATAERR,
            id="plain",
        ),
        pytest.param(
            Model(files({"config.json": REMOTE})),
            "config.json: auto_map",
            Exit.DATAERR,
            id="auto_map",
        ),
        pytest.param(
            Model(files({"modules.json": JINA})),
            "'custom_st.Transformer'",
            Exit.DATAERR,
            id="module",
        ),
        pytest.param(
            Model(files({"modules.json": b"{}"})), "a list of modules", Exit.DATAERR, id="no list"
        ),
        pytest.param(
            Model(files({"modules.json": b"["})),
            "cannot be read as JSON",
            Exit.DATAERR,
            id="no JSON",
        ),
        pytest.param(PICKLE, "--convert-pickle converts it", Exit.DATAERR, id="pickle"),
        pytest.param(
            Model(files({"1_Pooling/pytorch_model.bin": b"pickle"})),
            "1_Pooling/pytorch_model.bin: the weights exist only",
            Exit.DATAERR,
            id="pickle of a module",
        ),
    ],
)
def test_refused_before_the_weights(
    hub: Hub,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    model: Model | None,
    said: str,
    status: Exit,
) -> None:
    """One line, no weights downloaded, no export, models.toml untouched."""
    if model is not None:
        hub.models["me/mine"] = model
    export = Export()
    assert run(models, "me/mine", export=export) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not {"model.safetensors", "pytorch_model.bin"} & {*hub.downloads()}
    assert export.commands == []
    assert models.read_text() == MODELS


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if family.auto_map])
def test_code_that_a_family_replaces_is_no_hindrance(hub: Hub, models: Path, kind: str) -> None:
    """auto_map of such a model is not run, and the family computes what it names."""
    content = json.dumps({"model_type": kind, "auto_map": {"AutoModel": "modeling.Odd"}})
    hub.models["me/mine"] = Model(files({"config.json": content.encode()}))
    assert run(models, "me/mine") == 0


def test_a_pickle_is_taken_where_it_is_asked_for(hub: Hub, models: Path) -> None:
    """--convert-pickle goes on to the export, and the table pins the pickle."""
    hub.models["me/mine"] = PICKLE
    export = Export()
    assert run(models, "me/mine", "--convert-pickle", export=export) == 0
    assert export.commands[0][-1] == "--convert-pickle"
    assert "pytorch_model.bin" in table(models, "mine")["sha256"]
    assert "pytorch_model.bin" in hub.downloads()


def test_a_pickle_beside_safetensors_is_left_where_it_is(hub: Hub, models: Path) -> None:
    """Nobody needs it: it is not downloaded, even with --convert-pickle."""
    hub.models["me/mine"] = Model(files({"pytorch_model.bin": b"pickle"}))
    assert run(models, "me/mine", "--convert-pickle") == 0
    assert "pytorch_model.bin" not in table(models, "mine")["sha256"]
    assert "pytorch_model.bin" not in hub.downloads()


def test_known_not_to_work_is_said_without_the_hub(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No hub runs here: the catalogue's reason is enough."""
    name, reason = next(iter(catalogue.read().refused.items()))
    assert run(models, name.upper()) == Exit.DATAERR
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["me/first"], "already has [models.first]", id="model"),
        pytest.param(["me/short"], "already has [aliases.short]", id="alias"),
        pytest.param(["me/x", "--as", "add"], "the name of a command", id="command"),
        pytest.param(["me/x", "--as", "a b"], "a name is 1 to 128", id="name"),
        pytest.param(["mine"], "OWNER/NAME is accepted", id="id"),
        pytest.param([], "add needs OWNER/NAME, --from DIR or both", id="nothing"),
        pytest.param(["jinaai/jina-embeddings-v3"], "--task TASK", id="task"),
    ],
)
def test_a_command_that_cannot_be_done_asks_nobody(
    hub: Hub,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    """What is wrong on the command line is said before the hub is asked."""
    assert run(models, *arguments) in (Exit.USAGE, Exit.CONFIG)
    assert said in capsys.readouterr().err
    assert hub.asked == []
    assert models.read_text() == MODELS


@pytest.mark.parametrize("revision", ["main", "0123"])
def test_a_directory_wants_a_whole_commit(
    models: Path, directory: Path, capsys: pytest.CaptureFixture[str], revision: str
) -> None:
    """Without a hub nobody can say which commit a branch means."""
    arguments = [E5, "--from", str(directory), "--revision", revision]
    assert run(models, *arguments) == Exit.USAGE
    assert "40 hexadecimal digits" in capsys.readouterr().err


def test_a_revision_that_is_not_there(
    hub: Hub, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line has the model and the revision."""
    assert run(models, E5, "--revision", "v9") == Exit.UNAVAILABLE
    assert f"{E5}: no revision v9" in capsys.readouterr().err


def test_no_hub_says_what_to_do(hub: Hub, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hub that is out of reach: --from is the way."""
    hub.shutdown()
    hub.server_close()
    assert run(models, E5) == Exit.UNAVAILABLE
    error = capsys.readouterr().err
    assert "cannot be reached" in error
    assert "--from DIR" in error


def test_a_download_that_is_not_what_the_hub_lists(
    hub: Hub, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A digest is pinned only when the hub's own listing agrees."""
    hub.models[E5] = Model(files(), lies=frozenset({"model.safetensors"}))
    assert run(models, E5) == Exit.DATAERR
    assert "model.safetensors has sha256" in capsys.readouterr().err
    assert models.read_text() == MODELS


# -- when the export fails ---------------------------------------------------------------------


def test_a_failed_export_leaves_models_toml(
    hub: Hub, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its status, the file byte for byte as it was, and a line that says so."""
    before = models.stat()
    assert run(models, E5, export=Export(status=70)) == 70
    assert models.read_text() == MODELS
    assert models.stat().st_ino == before.st_ino
    assert f"not added; {models} is unchanged" in capsys.readouterr().err


def test_an_export_that_crashes_leaves_models_toml(hub: Hub, models: Path) -> None:
    """Whatever ends the export: the file is written after it."""

    def crash() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(models, E5, export=Export(meanwhile=crash))
    assert models.read_text() == MODELS


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_cannot_be_written_is_said_first(
    hub: Hub, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a download of gigabytes."""
    models.chmod(0o400)
    assert run(models, E5) == Exit.CANTCREAT
    assert hub.asked == []


# -- the command -------------------------------------------------------------------------------


def test_the_command_is_a_part_of_python_m_export(hub: Hub, models: Path, tmp_path: Path) -> None:
    """In a process of its own, with HF_ENDPOINT: the real export refuses these files."""
    command = [sys.executable, "-m", "export", "add", E5, "--models", str(models)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == Exit.DATAERR, done.stderr
    assert COMMIT in done.stdout
    assert "not added" in done.stderr
    assert models.read_text() == MODELS


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_a_model_of_the_hub_is_exported(hub: Hub, models: Path, tmp_path: Path) -> None:
    """The whole way in a process of its own: the artifact has the table's facts, and is kept."""
    from tests.export.checkpoints import as_saved_by_2, bert, checkpoint

    given = as_saved_by_2(checkpoint(tmp_path / "given", bert))
    hub.models[E5] = from_directory(given)
    out = tmp_path / "out"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "export"]
    options = ["--models", str(models), "--out", str(out)]
    done = subprocess.run([*command, "add", E5, *options], env=environment, check=False)
    assert done.returncode == 0
    manifest = artifact.read(out / "e5-small-v2")
    assert dict(manifest.prompts) == {"query": "query: ", "passage": "passage: "}
    assert (manifest.repository, manifest.revision) == (E5, COMMIT)
    again = [*command, "e5-small-v2", *options]
    kept = subprocess.run(again, env=environment, capture_output=True, text=True, check=True)
    assert "up to date, kept" in kept.stderr


def test_cli_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """`add` and what follows it go to export/add.py, and its status comes back."""
    given: list[Sequence[str]] = []

    def main(arguments: Sequence[str]) -> int:
        given.append(arguments)
        return 7

    monkeypatch.setattr(add, "main", main)
    assert cli.main(["add", "a/b", "--as", "c"]) == 7
    assert given == [["a/b", "--as", "c"]]


def test_the_error_of_a_broken_models_toml_names_it(
    models: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no copy of it in a temporary directory."""
    models.write_text('[models.first]\nprecision = "fp64"\n')
    assert run(models, "--from", str(directory)) == Exit.CONFIG
    assert f'{models}: [models.first] precision = "fp64"' in capsys.readouterr().err
