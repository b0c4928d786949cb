"""Pickled weights, converted by the operator's wish: the same numbers, and no code that runs."""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import pickle
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from embedserve import artifact
from embedserve.artifact import sha256
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from export import build, cli, confinement, pickles, sources, unpickling
from export.files import PICKLE, PICKLE_INDEX, WEIGHTS
from export.steps import Nurseries
from tests.export.checkpoints import bert, checkpoint

ROOT = Path(__file__).parents[2]


def tensors() -> dict[str, torch.Tensor]:
    """One of each kind that a checkpoint may have, two of them sharing memory."""
    table = torch.randn(30, 20)
    return {
        "table": table,
        "tied": table,
        "turned": table.t(),
        "row": table[3],
        "half": torch.randn(5).to(torch.float16),
        "brain": torch.randn(3).to(torch.bfloat16),
        "double": torch.randn(2, 2, 2).double(),
        "number": torch.tensor(5),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "learned": torch.nn.Parameter(torch.tensor([float("nan"), -0.0])),
    }


def model(directory: Path) -> Path:
    """A model's folder without weights."""
    directory.mkdir()
    (directory / "modules.json").write_text("[]")
    (directory / "config.json").write_text("{}")
    return directory


def convert(directory: Path, tmp_path: Path) -> pickles.Converted:
    """Convert into a scratch directory of the test."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return pickles.convert(directory, scratch, lambda line: None)


def same(path: Path, expected: dict[str, torch.Tensor]) -> None:
    """Safetensors hold these names, shapes, types and bits, and say that they are torch's."""
    found = load_file(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        given = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), given), name
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_every_tensor_is_the_same(is_zip: bool, tmp_path: Path) -> None:
    """Names, shapes, types and bits; of the model's files nothing is written or changed."""
    directory = model(tmp_path / "model")
    given = tensors()
    torch.save(given, directory / PICKLE, _use_new_zipfile_serialization=is_zip)
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*")}
    converted = convert(directory, tmp_path)
    same(converted.directory / WEIGHTS[0], given)
    assert converted.origins == {PICKLE: sha256(directory / PICKLE)}
    names = {path.name for path in converted.directory.iterdir()}
    assert names == {"modules.json", "config.json", WEIGHTS[0]}
    assert {p: p.stat().st_mtime_ns for p in directory.rglob("*")} == before


def test_shards_stay_shards(tmp_path: Path) -> None:
    """Each shard is converted, and the index names the new ones."""
    directory = model(tmp_path / "model")
    parts = {"one": {"a": torch.randn(3)}, "two": {"b": torch.randn(4), "c": torch.ones(1)}}
    files = {name: f"pytorch_model-{name}.bin" for name in parts}
    for name, part in parts.items():
        torch.save(part, directory / files[name])
    weight_map = {tensor: files[name] for name, part in parts.items() for tensor in part}
    (directory / PICKLE_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    converted = convert(directory, tmp_path)
    for name, part in parts.items():
        same(converted.directory / f"model-{name}.safetensors", part)
    index = json.loads((converted.directory / WEIGHTS[1]).read_text())
    assert index["weight_map"] == {
        "a": "model-one.safetensors",
        "b": "model-two.safetensors",
        "c": "model-two.safetensors",
    }
    assert set(converted.origins) == set(files.values())
    assert not (converted.directory / PICKLE_INDEX).exists()


BAD_INDEX: dict[str, tuple[dict[str, Any], str]] = {
    "missing tensor": ({"a": "pytorch_model-1.bin", "b": "pytorch_model-1.bin"}, "differ in b"),
    "tensor too many": ({}, "weight_map = {}"),
    "missing shard": ({"a": "pytorch_model-2.bin"}, "no such file"),
    "leads out": ({"a": "../pytorch_model-1.bin"}, "a .bin file beside it"),
    "no name": ({"a": 1}, "a .bin file beside it"),
}


@pytest.mark.parametrize("name", BAD_INDEX)
def test_a_bad_index_is_refused(name: str, tmp_path: Path) -> None:
    """Its names are those of the shards beside it."""
    weight_map, said = BAD_INDEX[name]
    directory = model(tmp_path / "model")
    torch.save({"a": torch.ones(1)}, directory / "pytorch_model-1.bin")
    (directory / PICKLE_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(StartupError) as caught:
        convert(directory, tmp_path)
    assert said in str(caught.value)
    assert caught.value.status == Exit.DATAERR


def test_a_module_s_own_pickle(tmp_path: Path) -> None:
    """A Dense module's weights are converted too; safetensors beside it are linked as they are."""
    directory = model(tmp_path / "model")
    save_file({"a": torch.ones(2)}, directory / WEIGHTS[0])
    (directory / "2_Dense").mkdir()
    (directory / "2_Dense" / "config.json").write_text("{}")
    dense = {"linear.weight": torch.randn(4, 2), "linear.bias": torch.randn(4)}
    torch.save(dense, directory / "2_Dense" / PICKLE)
    converted = convert(directory, tmp_path)
    same(converted.directory / "2_Dense" / WEIGHTS[0], dense)
    assert (converted.directory / WEIGHTS[0]).resolve() == directory / WEIGHTS[0]
    assert set(converted.origins) == {f"2_Dense/{PICKLE}"}


def test_safetensors_are_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With safetensors there, the pickle beside them is not even opened."""
    directory = model(tmp_path / "model")
    save_file({"a": torch.ones(2)}, directory / WEIGHTS[0])
    (directory / PICKLE).write_bytes(b"anything")
    monkeypatch.setattr(pickles, "_run", None)
    assert convert(directory, tmp_path) == pickles.Converted(directory, {})


# -- code ------------------------------------------------------------------------------------------


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


class Connect:
    """Opens a connection when it is unpickled."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __reduce__(self) -> tuple[Any, ...]:
        return (socket.create_connection, (("127.0.0.1", self.port),))


@pytest.mark.parametrize("form", ["torch", "before torch 1.6", "plain"])
def test_code_in_a_pickle_is_refused_and_does_not_run(form: str, tmp_path: Path) -> None:
    """Status 65, with what it would have called; the file that it would make is not there."""
    directory, sign = model(tmp_path / "model"), tmp_path / "ran"
    content = {"a": torch.ones(2), "b": Touch(sign)}
    with (directory / PICKLE).open("wb") as file:
        if form == "plain":
            pickle.dump(content["b"], file, protocol=2)
        else:
            torch.save(content, file, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(StartupError, match=r"pytorch_model\.bin: is refused: .*posix") as caught:
        convert(directory, tmp_path)
    assert caught.value.status == Exit.DATAERR
    assert "\n" not in str(caught.value)
    assert not sign.exists()
    # The pickle is one that runs where it is trusted.
    with (directory / PICKLE).open("rb") as file:
        if form == "plain":
            pickle.load(file)  # noqa: S301  # the test's own
        else:
            torch.load(file, weights_only=False)
    assert sign.exists()


# Code that runs all the same, in a process that is confined like the one that reads.
CONFINED = """
import os, pickle, resource, signal, socket, subprocess, sys, threading
from pathlib import Path
from export.confinement import confine
readable, place, misdeed, argument = sys.argv[1:]
place = Path(place)
out = open(place / "out", "wb")
confine(Path(readable), 1 << 28, 60, 1 << 20)
MISDEEDS = {
    "nothing": lambda: None,
    "pickle": lambda: pickle.loads(bytes.fromhex(argument)),
    "tcp": lambda: socket.socket(),
    "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "pair": lambda: socket.socketpair(),
    "create": lambda: (place / "new").write_text("x"),
    "change": lambda: (place / "old").write_text("x"),
    "append": lambda: open(place / "old", "a"),
    "truncate": lambda: os.truncate(place / "old", 0),
    "remove": lambda: (place / "old").unlink(),
    "rename": lambda: (place / "old").rename(place / "new"),
    "mkdir": lambda: (place / "new").mkdir(),
    "chmod": lambda: (place / "old").chmod(0),
    "link": lambda: os.link(place / "old", place / "new"),
    "symlink": lambda: (place / "new").symlink_to("/"),
    "owner": lambda: os.chown(place / "old", 1, 1),
    "time": lambda: os.utime(place / "old"),
    "fork": lambda: os.fork(),
    "exec": lambda: os.execv("/bin/touch", ["touch", str(place / "new")]),
    "run": lambda: subprocess.run(["/bin/touch", str(place / "new")]),
    "thread": lambda: threading.Thread(target=print).start(),
    "kill": lambda: os.kill(os.getppid(), 0),
    "limits": lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
    "chdir": lambda: os.chdir("/"),
    "chroot": lambda: os.chroot("/"),
    "memory": lambda: open("/proc/self/mem", "r+b"),
    "read": lambda: (place / "old").read_text(),
    "much memory": lambda: bytearray(1 << 30),
    "much output": lambda: out.write(bytes(2 << 20)),
}
try:
    MISDEEDS[misdeed]()
except BaseException as error:
    print(type(error).__name__, getattr(error, "errno", None))
    sys.stdout.flush()
    os._exit(3)
assert Path(readable).read_text() == "the only file"
out.write(b"what is open already")
out.close()
"""
STOPPED = (
    *("tcp", "udp", "unix", "pair", "create", "change", "append", "truncate", "remove", "rename"),
    *("mkdir", "chmod", "link", "symlink", "owner", "time", "fork", "exec", "run", "kill"),
    *("chdir", "chroot", "memory"),
)


def confined(tmp_path: Path, misdeed: str, argument: str = "") -> tuple[int, str, dict[str, str]]:
    """Exit status, output, and what is in the directory afterwards."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").write_text("old")
    (tmp_path / "readable").write_text("the only file")
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, tmp_path / "readable", place, misdeed, argument],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    found = {path.name: path.read_text() for path in place.iterdir() if path.is_file()}
    return done.returncode, done.stdout + done.stderr, found


class TestConfinement:
    """What is left to code that runs although none should."""

    def test_what_is_left(self, tmp_path: Path) -> None:
        """The file that it is given, and the output that is open."""
        status, said, found = confined(tmp_path, "nothing")
        assert (status, said) == (0, "")
        assert found == {"old": "old", "out": "what is open already"}

    @pytest.mark.parametrize("misdeed", STOPPED)
    def test_a_misdeed_is_stopped(self, misdeed: str, tmp_path: Path) -> None:
        """EPERM, for root too; nothing is changed, nobody reached."""
        status, said, found = confined(tmp_path, misdeed)
        assert (status, said) == (3, f"PermissionError {errno.EPERM}\n")
        assert found == {"old": "old", "out": ""}

    def test_no_threads_and_no_other_limits(self, tmp_path: Path) -> None:
        """They need calls that are not allowed; Python has errors of its own for them."""
        for name, said in (("thread", "RuntimeError"), ("limits", "ValueError")):
            place = tmp_path / name
            place.mkdir()
            assert confined(place, name)[1].startswith(said)

    def test_a_pickle_that_does_run(self, tmp_path: Path) -> None:
        """Even a reader that trusts it leaves nothing behind: no file, no connection."""
        touched = pickle.dumps(Touch(tmp_path / "place" / "new")).hex()
        assert confined(tmp_path, "pickle", touched)[2].keys() == {"old", "out"}
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0)
            (tmp_path / "again").mkdir()
            called = pickle.dumps(Connect(server.getsockname()[1])).hex()
            assert confined(tmp_path / "again", "pickle", called)[0] == 3
            with pytest.raises(BlockingIOError):
                server.accept()

    def test_resources_end(self, tmp_path: Path) -> None:
        """Memory and output are limited."""
        for name, said in (("much memory", "MemoryError"), ("much output", "OSError 27")):
            place = tmp_path / name
            place.mkdir()
            assert confined(place, name)[1].startswith(said)

    def test_other_files_cannot_be_read(self, tmp_path: Path) -> None:
        """Where the kernel has Landlock: keys and tokens of the user stay where they are."""
        if not landlock():
            pytest.skip("no Landlock here")
        status, said, _ = confined(tmp_path, "read")
        assert (status, said) == (3, f"PermissionError {errno.EACCES}\n")

    def test_a_system_without_it_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No confinement, no reading: status 69, before the pickle is opened."""
        monkeypatch.setattr(platform, "machine", lambda: "riscv64")
        with pytest.raises(confinement.UnavailableError, match="riscv64"):
            confinement.confine(tmp_path, 1, 1, 1)
        with pytest.raises(StartupError, match="cannot be confined here: no seccomp") as caught:
            pickles._checked({"unavailable": "no seccomp"}, tmp_path)
        assert caught.value.status == Exit.UNAVAILABLE


def landlock() -> bool:
    """Whether this kernel has it."""
    return bool(ctypes.CDLL(None).syscall(444, None, 0, 1) > 0)


# -- bad files -------------------------------------------------------------------------------------


def _whole(is_zip: bool) -> bytes:
    buffer = io.BytesIO()
    given = {"a": torch.randn(123457)}
    torch.save(given, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _declaring(content: bytes) -> bytes:
    """The same with 2^31 - 1 numbers declared where 123,457 are."""
    before, after = (b"J" + number.to_bytes(4, "little") for number in (123457, 2**31 - 1))
    assert before in content
    return content.replace(before, after)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "EOFError"),
    "no pickle": (lambda: b"hello, this is text", "Error: "),
    "html": (lambda: b"<!DOCTYPE html><html></html>", "Error: "),
    "lfs pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "Error: "),
    "cut zip": (lambda: _whole(True)[:5000], "Error: "),
    "cut in the numbers": (lambda: _whole(False)[:-5000], "EOF"),
    "list": (lambda: _saved([torch.ones(1)]), "holds list"),
    "nested": (lambda: _saved({"state_dict": {"a": torch.ones(1)}}), "state_dict is dict"),
    "number": (lambda: _saved({"step": 3}), "step is int"),
    "no name": (lambda: _saved({3: torch.ones(1)}), "the key 3"),
    "reserved name": (lambda: _saved({"__metadata__": torch.ones(1)}), "__metadata__"),
    "sparse": (lambda: _saved({"a": torch.eye(3).to_sparse()}), "sparse_coo"),
    "complex": (lambda: _saved({"a": torch.ones(2).to(torch.complex64)}), "complex64"),
    "one number, 10^12 times": (
        lambda: _saved({"a": torch.zeros(1).expand(10**12)}),
        "declares tensors of 4000000000000 bytes",
    ),
    "one table under 100 names": (
        lambda: _saved(dict.fromkeys(map(str, range(100)), torch.zeros(10**5))),
        "declares tensors of 40000000 bytes",
    ),
    "more declared than there is": (lambda: _declaring(_whole(True)), "Error: "),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused(name: str, tmp_path: Path) -> None:
    """The reader says in one line what is wrong, and no advice to trust the file."""
    make, said = BAD[name]
    path = tmp_path / PICKLE
    path.write_bytes(make())
    most = unpickling.most_written(path.stat().st_size)
    with pytest.raises(Exception, match=r"[^\n]?") as caught:  # torch raises many kinds
        unpickling.read(path, most)
    reason = unpickling.reason(caught.value)
    assert re.search(said, reason)
    assert "\n" not in reason
    assert "weights_only" not in reason


@pytest.mark.parametrize("name", ["no pickle", "more declared than memory"])
def test_a_bad_file_ends_the_export(name: str, tmp_path: Path) -> None:
    """Status 65, one line that names the file; no traceback, no memory beyond the file's."""
    directory = model(tmp_path / "model")
    content = _declaring(_whole(False)) if name == "more declared than memory" else b"hello"
    (directory / PICKLE).write_bytes(content)
    with pytest.raises(StartupError) as caught:
        convert(directory, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{directory / PICKLE}: is refused: ")
    assert "\n" not in message
    assert caught.value.status == Exit.DATAERR


def test_a_full_disk(tmp_path: Path) -> None:
    """It is the system's error, which names the disk as full; not the pickle's."""
    path = tmp_path / PICKLE
    torch.save({"a": torch.randn(1000)}, path)
    with open("/dev/full", "wb") as full, pytest.raises(OSError, match="No space left") as caught:  # noqa: PTH123
        pickles._run("write", path, tmp_path, full.fileno())
    assert caught.value.errno == errno.ENOSPC


def test_what_is_written_wrongly_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees one number that differs, and nothing is published."""
    directory = model(tmp_path / "model")
    torch.save({"a": torch.zeros(4)}, directory / PICKLE)
    right = pickles._described

    def wrong(path: Path) -> pickles.Tensors:
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x01")
        return right(path)

    monkeypatch.setattr(pickles, "_described", wrong)
    with pytest.raises(StartupError, match="a was read as") as caught:
        convert(directory, tmp_path)
    assert caught.value.status == Exit.SOFTWARE


# -- where pickles come from -----------------------------------------------------------------------


def test_pickles_are_downloaded_by_a_wish_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it no pattern takes one; with it, only of a model without safetensors."""
    asked: list[tuple[str, ...]] = []

    def snapshot(spec: Any, patterns: tuple[str, ...]) -> Path:
        asked.append(tuple(patterns))
        return tmp_path

    monkeypatch.setattr(sources, "_snapshot", snapshot)
    sources._from_hub(None, False)  # type: ignore[arg-type]  # it is not looked at
    assert not any("bin" in pattern for patterns in asked for pattern in patterns)
    sources._from_hub(None, True)  # type: ignore[arg-type]
    assert "pytorch_model*.bin" in asked[-1]
    (tmp_path / WEIGHTS[0]).touch()
    sources._from_hub(None, True)  # type: ignore[arg-type]
    assert "pytorch_model*.bin" not in asked[-1]


def test_digests_cover_pickles_by_a_wish(tmp_path: Path) -> None:
    """A changed pickle makes the artifact anew."""
    directory = model(tmp_path / "model")
    (directory / PICKLE).write_bytes(b"x")
    assert PICKLE not in sources.digests(directory)
    assert PICKLE in sources.digests(directory, pickles=True)


def test_the_wish_needs_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody wishes it for all models at once."""
    (tmp_path / "models.toml").write_text("[models.m]\n")
    words = ["--convert-pickle", "--models", str(tmp_path / "models.toml")]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == Exit.USAGE
    assert "needs the names" in capsys.readouterr().err


# -- the whole export ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_an_artifact_of_a_pickle(tmp_path: Path, nurseries: Nurseries) -> None:
    """By the wish alone; then it is the model that its safetensors are, and says where from."""
    given = checkpoint(tmp_path / "given", bert)
    pickled = Path(shutil.copytree(given, tmp_path / "pickled"))
    torch.save(load_file(pickled / WEIGHTS[0]), pickled / PICKLE)
    (pickled / WEIGHTS[0]).unlink()
    spec, out = ModelSpec("m"), tmp_path / "out"
    with pytest.raises(StartupError, match="--convert-pickle NAME converts it"):
        build.export(spec, out, pickled, False, print, nurseries)
    made = build.export(spec, out, pickled, False, print, nurseries, convert_pickle=True)
    usual = build.export(spec, tmp_path / "usual", given, False, print, nurseries)
    assert made.manifest.converted_from == {PICKLE: sha256(pickled / PICKLE)}
    assert made.manifest.fingerprint == usual.manifest.fingerprint
    assert usual.manifest.converted_from == {}
    assert artifact.read(out / "m") == made.manifest
    for wish in (True, False):
        assert build.export(spec, out, pickled, False, print, nurseries, convert_pickle=wish).kept
    with (pickled / PICKLE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(StartupError, match="--convert-pickle NAME converts it"):
        build.export(spec, out, pickled, False, print, nurseries)  # the pickle is another one
    assert artifact.read(out / "m") == made.manifest
