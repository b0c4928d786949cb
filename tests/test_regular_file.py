"""Files of others: whatever stands in their place, no command waits for it or opens it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from embedserve import artifact
from embedserve.system import regular_file
from tests import tiny
from tests.bulk.files import embed
from tests.conftest import Server, Start, run


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.mkdir()


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


KINDS: dict[str, Callable[[Path], None]] = {
    "is a pipe": _pipe,
    "is a directory": _directory,
    "is a device": _device,
    "is a socket": _socket,
    "is a pipe; a": _link_to_a_pipe,
}
every_kind = pytest.mark.parametrize(("said", "make"), KINDS.items(), ids=KINDS)


@every_kind
def test_other_kinds(said: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    """Anything but a regular file is refused at once, and named."""
    make(tmp_path / "file")
    for function in (regular_file.read, regular_file.open_file, regular_file.check):
        with pytest.raises(OSError, match=said) as error:
            function(tmp_path / "file")
        assert error.value.filename == str(tmp_path / "file")


def test_links_and_sizes(tmp_path: Path) -> None:
    """A link to a regular file is followed, as Kubernetes makes them; a size is kept to."""
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert regular_file.read(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        regular_file.read(tmp_path / "link", 4)


@every_kind
@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.TOKENIZER, artifact.GRAPH])
def test_artifact(said: str, make: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    """`doctor` says in one line which file of an artifact is none."""
    directory = tmp_path / "artifacts" / "tiny"
    tiny.write(directory)
    models = tiny.models_toml(tmp_path / "models.toml", {"tiny": ""})
    (directory / name).unlink()
    make(directory / name)
    done = run("doctor", "--models", models, "--artifacts", tmp_path / "artifacts")
    assert done.returncode == 78
    assert f"cannot serve: {directory / name}" in done.stdout or "pipe: not in" in done.stdout
    assert not done.stderr


@every_kind
def test_settings(said: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    """models.toml, a keys file and an input are regular files, too."""
    make(tmp_path / "odd.jsonl")
    tiny.write(tmp_path / "artifacts" / "tiny")
    models = tiny.models_toml(tmp_path / "models.toml", {"tiny": ""})
    paths = ("--artifacts", tmp_path / "artifacts")
    for done in (
        run("verify", "--models", tmp_path / "odd.jsonl", *paths),
        run("serve", "--models", models, *paths, "--api-keys-file", tmp_path / "odd.jsonl"),
        embed(tmp_path / "odd.jsonl", tmp_path / "out.npy", "--models", models, *paths),
    ):
        assert done.returncode in (66, 78)
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_reload(start: Start, tiny_artifacts: Path, tmp_path: Path) -> None:
    """A pipe in the place of the keys file does not stop the loop at SIGHUP."""
    path = tmp_path / "keys"
    path.write_text("sk-first-1111111111\n", encoding="utf-8")
    models = tiny_artifacts.parent / "models.toml"
    server: Server = start(models, tiny_artifacts, "--api-keys-file", str(path))
    path.unlink()
    os.mkfifo(path)
    server.process.send_signal(signal.SIGHUP)
    while "not reloaded" not in server.log.read_text():
        pass  # the suite's timeout bounds it
    with server.client() as client:
        headers = {"Authorization": "Bearer sk-first-1111111111"}
        assert client.get("/v1/models", headers=headers).status_code == 200
