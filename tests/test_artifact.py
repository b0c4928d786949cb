"""The artifact: what was written is read, and whatever was changed since is refused by name."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve import artifact
from embedserve.artifact import FileRecord, FinishingStep, Golden, Manifest, Parity, Quality, Table
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from embedserve.model.loading import load_model
from tests import tiny

QUALITY = Quality("b" * 64, 500, 3_500, "cpu", 0.96, 0.97, 0.97, 0.98, 0.999, 0.99, 0.999, 0.93)
RICH: dict[str, Any] = {
    "pooling": ("cls", "mean"),
    "finishing": (
        FinishingStep(
            "dense",
            activation="torch.nn.modules.activation.Tanh",
            weight="dense.npy",
            bias="bias.npy",
        ),
        FinishingStep("layer_norm", eps=1e-5),
        FinishingStep("normalize"),
    ),
    "matryoshka": (4, 2),
    "prompts": {"query": "Frage: é ", "": "\n"},
    "default_prompt_name": "query",
    "padding_side": "left",
    "masked_up_to": 6,
    "parity": Parity(
        "sentence-transformers", 3, 256, 1e-7, 1.0, 1e-5, {"torch": "2.9"}, {"optimum": "2.1"}
    ),
    "quality": QUALITY,
    "converted_from": {"pytorch_model.bin": "a" * 64},
}
CONVERTED = "converted_from"
OPTIONAL = (CONVERTED, "quality")
# Another value for each fact that determines vectors.
OTHER_FACTS: dict[str, Any] = {
    "format": 2,
    "model_type": "bert",
    "hidden_size": 8,
    "dimension": 8,
    "vocabulary": 12,
    "max_tokens": 9,
    "pooling": ("cls",),
    "finishing": (FinishingStep("layer_norm", eps=1e-5), FinishingStep("normalize")),
    "matryoshka": (4, 2),
    "prompts": {"query": "query: "},
    "default_prompt_name": "query",
    "padding_side": "left",
    "pad_token_id": 1,
    "precision": "fp16",
    "masked_up_to": 4,
}
OTHER_STORIES: dict[str, Any] = {
    "name": "another",
    "repository": "someone/else",
    "revision": None,
    "fingerprint": "0" * 64,
    "created": "2027-12-31T00:00:00Z",
    "parity": Parity("x", 1, 1, 0.0, 1.0, 1.0, {}, {}),
    "quality": QUALITY,
    "tables": (Table("words", 64, (3, 4)),),
    "converted_from": {"pytorch_model.bin": "a" * 64},
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A whole artifact."""
    tiny.write(tmp_path / "tiny")
    return tmp_path / "tiny"


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change manifest.json and leave everything else as it is."""
    path = directory / artifact.MANIFEST
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def refused_by_read(directory: Path, *parts: str) -> StartupError:
    """Reading the manifest is refused, naming the file and each part."""
    with pytest.raises(StartupError) as error:
        artifact.read(directory)
    message = str(error.value)
    assert message.startswith(str(directory / artifact.MANIFEST))
    assert "\n" not in message
    for part in parts:
        assert part in message
    return error.value


def refused_by_check(directory: Path, name: str, *parts: str) -> None:
    """The manifest reads, and the check of the files is refused, naming the file."""
    manifest = artifact.read(directory)
    with pytest.raises(StartupError) as error:
        artifact.check_files(directory, manifest)
    assert str(error.value).startswith(f"{directory / name}: ")
    for part in parts:
        assert part in str(error.value)


class TestManifest:
    """manifest.json, written and read."""

    @pytest.mark.parametrize("facts", [{}, RICH], ids=["plain", "rich"])
    def test_what_is_written_is_read(self, tmp_path: Path, facts: dict[str, Any]) -> None:
        """read(write(x)) is x, in every field and type."""
        written = tiny.write(tmp_path / "a", **facts)
        read = artifact.read(tmp_path / "a")
        assert read == written
        for field in fields(Manifest):
            assert type(getattr(read, field.name)) is type(getattr(written, field.name))
        for key, value in facts.items():
            assert getattr(read, key) == value
        artifact.check_files(tmp_path / "a", read)

    def test_an_array_outside_of_files_is_refused(self, tmp_path: Path) -> None:
        """A step's array has a digest, or the artifact is refused."""
        step = FinishingStep("dense", activation="torch.nn.modules.activation.Tanh", weight="w.npy")
        tiny.write(tmp_path / "a", finishing=(step,))
        (tmp_path / "a" / "w.npy").unlink()
        artifact.write(tmp_path / "a", artifact.read(tmp_path / "a"))
        with pytest.raises(StartupError, match=r"w\.npy"):
            artifact.read(tmp_path / "a")

    def test_write_records_every_file(self, directory: Path) -> None:
        """Each file but the manifest itself stands there with its size and digest."""
        files = artifact.read(directory).files
        assert set(files) == {"model.onnx", "pooling.onnx", "tokenizer.json", "golden.json"}
        for name, record in files.items():
            assert record.bytes == len((directory / name).read_bytes())
            assert record.sha256 == artifact.sha256(directory / name)

    def test_sha256_is_the_standard_s(self, tmp_path: Path) -> None:
        """FIPS 180-4's example: "abc"."""
        (tmp_path / "abc").write_bytes(b"abc")
        assert artifact.sha256(tmp_path / "abc") == (
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        )

    @pytest.mark.parametrize(
        ("kinds", "normalized"),
        [
            ((), False),
            (("layer_norm",), False),
            (("normalize", "layer_norm"), False),
            (("normalize",), True),
            (("layer_norm", "normalize"), True),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
    )
    def test_normalized(self, kinds: tuple[str, ...], normalized: bool) -> None:
        """Vectors have length 1 when normalize is the last step."""
        manifest = tiny.manifest(finishing=tuple(map(FinishingStep, kinds)))
        assert manifest.normalized is normalized


class TestFingerprint:
    """What determines vectors, and nothing else."""

    base = tiny.manifest(files={"model.onnx": FileRecord("a" * 64, 1)})

    def test_each_fact_of_the_manifest_is_in_one_of_the_tables(self) -> None:
        """A new fact needs a decision: does it determine vectors?"""
        names = {f.name for f in fields(Manifest)} - {"files"}
        assert set(OTHER_FACTS) | set(OTHER_STORIES) == names

    @pytest.mark.parametrize("key", OTHER_FACTS)
    def test_changes_with_each_fact(self, key: str) -> None:
        """Another fact, another fingerprint."""
        other = replace(self.base, **{key: OTHER_FACTS[key]})
        assert getattr(other, key) != getattr(self.base, key)
        assert artifact.fingerprint(other) != artifact.fingerprint(self.base)

    @pytest.mark.parametrize("key", OTHER_STORIES)
    def test_does_not_change_with_names_times_and_reports(self, key: str) -> None:
        """Exports of the same files at another time and place are the same model."""
        other = replace(self.base, **{key: OTHER_STORIES[key]})
        assert getattr(other, key) != getattr(self.base, key)
        assert artifact.fingerprint(other) == artifact.fingerprint(self.base)

    @pytest.mark.parametrize(
        ("name", "same"),
        [
            ("model.onnx", False),
            ("tokenizer.json", False),
            ("dense.npy", False),
            ("golden.json", True),
            ("pooling.onnx", True),
        ],
    )
    def test_changes_with_each_file_that_is_a_fact(self, name: str, same: bool) -> None:
        """Golden vectors check the model, and the graph of pooling follows from its modes."""
        files = {**self.base.files, name: FileRecord("b" * 64, 1)}
        other = replace(self.base, files=files)
        assert (artifact.fingerprint(other) == artifact.fingerprint(self.base)) is same

    def test_is_64_hexadecimal_digits(self) -> None:
        """A sha256, as it stands in a header."""
        digest = artifact.fingerprint(self.base)
        assert len(digest) == 64
        assert bytes.fromhex(digest).hex() == digest

    def test_two_writes_of_the_same_files_agree(self, tmp_path: Path) -> None:
        """Another directory, name and time: the same fingerprint."""
        first = tiny.write(tmp_path / "a", "a", created="2026-01-01T00:00:00Z")
        second = tiny.write(tmp_path / "b", "b", created="2026-02-02T00:00:00Z")
        assert first.fingerprint == second.fingerprint

    def test_prompts_in_another_order_are_the_same_prompts(self) -> None:
        """A table has no order."""
        one = replace(self.base, prompts={"a": "1", "b": "2"})
        two = replace(self.base, prompts={"b": "2", "a": "1"})
        assert artifact.fingerprint(one) == artifact.fingerprint(two)


class TestEditedManifest:
    """A manifest that is not as `write` left it."""

    def test_missing(self, tmp_path: Path) -> None:
        """The message says how to make the artifact."""
        error = refused_by_read(tmp_path, f"python -m export {tmp_path.name}")
        assert error.status == Exit.NOINPUT

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"\xff\xfe{\x00}\x00", b'{"format": 1', b"[" * 100_000],
        ids=["empty", "cut", "UTF-16", "unclosed", "deep"],
    )
    def test_no_json(self, directory: Path, content: bytes) -> None:
        """A manifest that is no JSON is named."""
        (directory / artifact.MANIFEST).write_bytes(content)
        refused_by_read(directory)

    @pytest.mark.parametrize("value", [[], None, 1, "x", {}], ids=repr)
    def test_no_manifest(self, directory: Path, value: object) -> None:
        """JSON of another shape is refused by its format."""
        (directory / artifact.MANIFEST).write_text(json.dumps(value), encoding="utf-8")
        refused_by_read(directory, "format")

    @pytest.mark.parametrize("value", [0, 2, "1", None, True, 1.0], ids=repr)
    def test_another_format(self, directory: Path, value: object) -> None:
        """Only the integer this version writes is read."""
        edit(directory, lambda m: m.update(format=value))
        refused_by_read(directory, "format")

    @pytest.mark.parametrize("key", OTHER_FACTS)
    def test_an_edited_fact(self, directory: Path, key: str) -> None:
        """A fact that was changed by hand does not fit the fingerprint, or is refused itself."""
        other = artifact.write(directory, tiny.manifest(**{key: OTHER_FACTS[key]}))
        changed = json.loads((directory / artifact.MANIFEST).read_text(encoding="utf-8"))[key]
        original = artifact.write(directory, tiny.manifest())
        assert original.fingerprint != other.fingerprint
        edit(directory, lambda m: m.update({key: changed}))
        refused_by_read(directory, "format" if key == "format" else "fingerprint")

    def test_an_edited_fingerprint(self, directory: Path) -> None:
        """A fingerprint that was changed does not fit the facts."""
        edit(directory, lambda m: m.update(fingerprint="0" * 64))
        refused_by_read(directory, "fingerprint")

    def test_an_edited_digest_of_the_graph(self, directory: Path) -> None:
        """Another graph's digest does not fit the fingerprint."""
        edit(directory, lambda m: m["files"]["model.onnx"].update(sha256="0" * 64))
        refused_by_read(directory, "fingerprint")

    @pytest.mark.parametrize("key", [f.name for f in fields(Manifest) if f.name not in OPTIONAL])
    def test_a_missing_key(self, directory: Path, key: str) -> None:
        """Every key must be there; none has a default when read, but the one below."""
        edit(directory, lambda m: m.pop(key))
        refused_by_read(directory, key)

    def test_weights_that_are_not_converted(self, directory: Path) -> None:
        """Nothing is written of it, so that versions that do not know the key read the rest."""
        assert not {*OPTIONAL} & {*json.loads((directory / artifact.MANIFEST).read_text())}
        assert artifact.read(directory).converted_from == {}
        assert artifact.read(directory).quality is None

    @pytest.mark.parametrize("value", [1, None, "a", [], {"pytorch_model.bin": 1}], ids=str)
    def test_odd_origins(self, directory: Path, value: object) -> None:
        """Digests by path, or nothing."""
        edit(directory, lambda m: m.update({CONVERTED: value}))
        refused_by_read(directory, CONVERTED)

    def test_an_unknown_key(self, directory: Path) -> None:
        """A key of a later version is not ignored."""
        edit(directory, lambda m: m.update(quantized=True))
        refused_by_read(directory, "quantized")

    def test_an_unknown_key_in_a_step(self, directory: Path) -> None:
        """The same inside."""
        edit(directory, lambda m: m["finishing"][0].update(power=2))
        refused_by_read(directory, "finishing[0]", "power")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("name", 1),
            ("repository", 1),
            ("model_type", None),
            ("hidden_size", 4.0),
            ("hidden_size", "4"),
            ("dimension", True),
            ("max_tokens", None),
            ("pooling", "mean"),
            ("pooling", [1]),
            ("finishing", {"kind": "normalize"}),
            ("finishing", ["normalize"]),
            ("matryoshka", [2.0]),
            ("matryoshka", None),
            ("prompts", [["query", "a"]]),
            ("prompts", {"query": 1}),
            ("padding_side", None),
            ("masked_up_to", "8"),
            ("masked_up_to", False),
            ("parity", []),
            ("files", []),
            ("files", {"model.onnx": "abc"}),
        ],
        ids=lambda value: value if isinstance(value, str) else repr(value),
    )
    def test_a_wrong_type(self, directory: Path, key: str, value: object) -> None:
        """Types are exact: true is no integer, 4.0 neither."""
        edit(directory, lambda m: m.update({key: value}))
        refused_by_read(directory, key)

    @pytest.mark.parametrize(
        ("key", "value", "accepted"),
        [
            ("pooling", ("average",), "cls, max, mean"),
            ("pooling", (), "cls, max, mean"),
            ("finishing", (FinishingStep("whiten"),), "dense, layer_norm, normalize"),
            ("padding_side", "both", "right, left"),
            ("precision", "int4", "fp32, fp16, int8"),
            (
                "finishing",
                (FinishingStep("dense", activation="torch.nn.GELU"),),
                "torch.nn.modules",
            ),
        ],
        ids=["pooling", "no pooling", "finishing", "padding_side", "precision", "activation"],
    )
    def test_a_choice_this_version_does_not_know(
        self, directory: Path, key: str, value: Any, accepted: str
    ) -> None:
        """A mode of a later version is refused with what is known, fingerprint or not."""
        artifact.write(directory, tiny.manifest(**{key: value}))
        refused_by_read(directory, accepted)

    def test_a_lone_surrogate(self, directory: Path) -> None:
        r"""JSON can hold "\ud800", which no text is: refused like any other edit."""
        edit(directory, lambda m: m.update(prompts={"query": "\ud800"}))
        refused_by_read(directory)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    key=st.sampled_from(sorted(OTHER_FACTS)),
    value=JSON,
)
@settings(deadline=None)
def test_any_edit_of_a_fact_is_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    """Whatever JSON a fact becomes, the answer is one error that names the file."""
    directory = tmp_path_factory.mktemp("edited")
    original = artifact.write(directory, tiny.manifest())
    edit(directory, lambda m: m.update({key: value}))
    try:
        assert artifact.read(directory) == original
    except StartupError as error:
        assert str(error).startswith(str(directory / artifact.MANIFEST))


class TestFiles:
    """check_files: the files are those of the manifest, and files."""

    def test_an_untouched_artifact_passes(self, directory: Path) -> None:
        """Nothing is refused that `write` left."""
        artifact.check_files(directory, artifact.read(directory))

    @pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "golden.json"])
    @pytest.mark.parametrize("position", ["first", "middle", "last"])
    def test_one_flipped_bit(self, directory: Path, name: str, position: str) -> None:
        """A bit anywhere in any file is found."""
        path = directory / name
        content = bytearray(path.read_bytes())
        content[{"first": 0, "middle": len(content) // 2, "last": -1}[position]] ^= 1
        path.write_bytes(content)
        refused_by_check(directory, name, "sha256")

    @pytest.mark.parametrize("also", ["nothing", "model.onnx"])
    def test_altered_weights(self, directory: Path, also: str) -> None:
        """They load while they are checked, and are refused all the same, whatever else fails."""
        weights = directory / artifact.WEIGHTS
        weights.write_bytes(bytes(4096))
        if also == "model.onnx":  # as it was exported, and still not loadable
            (directory / also).write_bytes(b"no graph")
        artifact.write(directory, tiny.manifest())
        weights.write_bytes(bytes(4095) + b"1")
        refused_by_check(directory, artifact.WEIGHTS, "sha256")
        with pytest.raises(StartupError, match=f"{weights}: has sha256"):
            load_model(ModelSpec("tiny"), directory, "cpu")

    @pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "golden.json"])
    def test_a_missing_file(self, directory: Path, name: str) -> None:
        """What the manifest names must be there."""
        (directory / name).unlink()
        refused_by_check(directory, name, "missing")

    def test_another_tokenizer(self, directory: Path) -> None:
        """Another model's tokenizer.json, itself in order, is not this model's."""
        other = tiny.tokenizer()
        other.add_tokens(["new"])
        other.save(str(directory / artifact.TOKENIZER))
        refused_by_check(directory, "tokenizer.json", "bytes")

    @pytest.mark.parametrize("name", ["model.onnx.data", ".hidden", "zz"])
    def test_an_extra_file(self, directory: Path, name: str) -> None:
        """onnxruntime would read a model.onnx.data; nothing unknown may lie there."""
        (directory / name).write_bytes(b"")
        refused_by_check(directory, name, "not in the manifest")

    def test_an_extra_directory(self, directory: Path) -> None:
        """Directories neither."""
        (directory / "sub").mkdir()
        refused_by_check(directory, "sub", "not in the manifest")

    @pytest.mark.parametrize(
        "name", ["model.onnx", "tokenizer.json", "golden.json", "manifest.json"]
    )
    @pytest.mark.parametrize("kind", ["symbolic", "hard"])
    def test_a_link(self, directory: Path, tmp_path: Path, name: str, kind: str) -> None:
        """A link to the same bytes is refused: they could change behind the artifact."""
        outside = tmp_path / "outside"
        if kind == "symbolic":
            (directory / name).rename(outside)
            (directory / name).symlink_to(outside)
        else:
            os.link(directory / name, outside)
        refused_by_check(directory, name, "link")

    def test_a_directory_in_the_place_of_a_file(self, directory: Path) -> None:
        """What cannot be read as a file is named before it is opened."""
        (directory / "model.onnx").unlink()
        (directory / "model.onnx").mkdir()
        refused_by_check(directory, "model.onnx", "not a regular file")

    @pytest.mark.parametrize("name", ["../escape", "/etc/hostname", "sub/file"])
    def test_a_path_out_of_the_artifact(self, directory: Path, name: str) -> None:
        """A manifest cannot point at files elsewhere."""
        (directory.parent / "escape").write_bytes(b"")
        files = {**artifact.read(directory).files, name: FileRecord("0" * 64, 0)}
        manifest = replace(artifact.read(directory), files=files)
        with pytest.raises(StartupError, match="missing"):
            artifact.check_files(directory, manifest)


class TestGolden:
    """golden.json."""

    golden = Golden(
        ("a", "é \U0001f600\n"),
        ((2, 4, 3), ()),
        np.array([[1.5, -0.0, 3.4e38], [1e-45, np.float32(0.1), -2.0]], np.float32),
    )

    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        """Texts, ids and the vectors' bits."""
        artifact.write_golden(tmp_path, self.golden)
        read = artifact.read_golden(tmp_path)
        assert read.texts == self.golden.texts
        assert read.token_ids == self.golden.token_ids
        assert read.vectors.dtype == np.float32
        assert read.vectors.shape == (2, 3)
        assert read.vectors.tobytes() == self.golden.vectors.tobytes()

    def test_vectors_are_little_endian(self, tmp_path: Path) -> None:
        """1.0 is 00 00 80 3f on every machine."""
        vectors = np.array([[1.0]], np.float32)
        artifact.write_golden(tmp_path, Golden(("a",), ((1,),), vectors))
        value = json.loads((tmp_path / "golden.json").read_text())
        assert base64.b64decode(value["vectors"][0]) == bytes.fromhex("0000803f")

    @pytest.mark.parametrize(
        "change",
        [
            lambda g: g.pop("vectors"),
            lambda g: g.pop("texts"),
            lambda g: g.pop("token_ids"),
            lambda g: g.update(vectors=[]),
            lambda g: g.update(vectors=["!!!!", "AAAA"]),
            lambda g: g.update(vectors=["AAAAAA==", "AAAAAAAAAAA="]),
            lambda g: g.update(vectors=["AAA=", "AAA="]),
            lambda g: g.update(vectors=[1, 2]),
            lambda g: g.update(vectors=None),
            lambda g: g["texts"].pop(),
            lambda g: g["token_ids"].pop(),
            lambda g: g.update(token_ids=[["x"], [1]]),
            lambda g: g.update(token_ids=[1, 2]),
            lambda g: g.update(token_ids=[[float("inf")], [1]]),
            lambda g: g.update(texts=5),
            lambda g: g.update(texts=[1, 2]),
            lambda g: g.update(texts="ab"),
        ],
        ids=[
            "no vectors",
            "no texts",
            "no ids",
            "empty vectors",
            "no base64",
            "two lengths",
            "half a float",
            "numbers",
            "null",
            "a text less",
            "an ids less",
            "ids of strings",
            "ids no list",
            "infinite id",
            "texts a number",
            "texts of numbers",
            "texts a string",
        ],
    )
    def test_broken(self, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
        """Whatever is wrong, the error names golden.json."""
        artifact.write_golden(tmp_path, self.golden)
        path = tmp_path / "golden.json"
        value = json.loads(path.read_text(encoding="utf-8"))
        change(value)
        path.write_text(json.dumps(value), encoding="utf-8")
        with pytest.raises(StartupError) as error:
            artifact.read_golden(tmp_path)
        assert str(error.value).startswith(f"{path}: ")

    @pytest.mark.parametrize("content", [None, b"", b"[]", b"null", b"\xff"], ids=repr)
    def test_no_golden(self, tmp_path: Path, content: bytes | None) -> None:
        """Missing, empty, or something else."""
        path = tmp_path / "golden.json"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StartupError) as error:
            artifact.read_golden(tmp_path)
        assert str(error.value).startswith(f"{path}: ")


class TestArrays:
    """read_array: the weights of finishing steps."""

    def test_float32(self, tmp_path: Path) -> None:
        """What numpy saved is read bit for bit."""
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.save(tmp_path / "w.npy", array)
        read = artifact.read_array(tmp_path, "w.npy")
        assert read.dtype == np.float32
        assert read.tolist() == array.tolist()

    @pytest.mark.parametrize(
        "array",
        [np.ones(2), np.ones(2, np.int64), np.ones(2, ">f4")],
        ids=["float64", "int64", "big-endian"],
    )
    def test_another_type(self, tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
        """Weights of another precision are not silently converted."""
        np.save(tmp_path / "w.npy", array)
        with pytest.raises(StartupError) as error:
            artifact.read_array(tmp_path, "w.npy")
        assert str(error.value).startswith(f"{tmp_path / 'w.npy'}: ")

    def test_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        """A pickle in an artifact runs no code: refused like any broken file."""
        np.save(tmp_path / "w.npy", np.array([{}], object))
        with pytest.raises(StartupError) as error:
            artifact.read_array(tmp_path, "w.npy")
        assert str(error.value).startswith(f"{tmp_path / 'w.npy'}: ")

    def test_a_missing_array(self, tmp_path: Path) -> None:
        """A step whose weights are not there is an error that names them."""
        with pytest.raises(StartupError) as error:
            artifact.read_array(tmp_path, "gone.npy")
        assert str(error.value).startswith(f"{tmp_path / 'gone.npy'}: ")


class TestDeviation:
    """How far a vector may be from the reference."""

    @pytest.mark.parametrize(
        ("found", "expected", "precision", "deviation"),
        [
            ([1.0, 0.0], [1.0, 0.25], "fp32", 0.25),
            ([1.0, 0.0], [2.0, 0.0], "int8", 0.0),
            ([1.0, 0.0], [0.0, 3.0], "int8", 1.0),
            ([0.0, 0.0], [0.0, 0.0], "int8", 0.0),
            ([0.0, 0.0], [1.0, 0.0], "int8", 1.0),
        ],
    )
    def test_by_hand(
        self, found: list[float], expected: list[float], precision: str, deviation: float
    ) -> None:
        """A difference of components; for int8 of directions, and zeros have none."""
        rows = (
            np.array([[1.0, 1.0], found], np.float32),
            np.array([[1.0, 1.0], expected], np.float32),
        )
        assert artifact.deviation(*rows, precision) == pytest.approx(deviation)

    @pytest.mark.parametrize("precision", artifact.TOLERANCES)
    def test_nan(self, precision: str) -> None:
        """It is within no tolerance."""
        found = np.array([[1.0, np.nan], [1.0, 1.0]], np.float32)
        deviation = artifact.deviation(found, np.ones((2, 2), np.float32), precision)
        assert not deviation <= artifact.TOLERANCES[precision]


class TestTables:
    """Tables of embeddings, read in place."""

    WORDS = np.arange(24, dtype=np.float32).reshape(6, 4)

    def manifest(self, *tables: Table, precision: str = "fp32") -> Manifest:
        return tiny.manifest(tables=tables, precision=precision)

    @pytest.mark.parametrize("precision", artifact.TOLERANCES)
    def test_mapped(self, tmp_path: Path, precision: str) -> None:
        """Each by its name, from its offset, in the artifact's precision."""
        words = self.WORDS.astype(np.float16 if precision == "fp16" else np.float32)
        (tmp_path / artifact.WEIGHTS).write_bytes(b"x" * 64 + words.tobytes())
        tables = Table("words", 64, (6, 4)), Table("last", 64 + words[:4].nbytes, (2, 4))
        mapped = artifact.map_tables(tmp_path, self.manifest(*tables, precision=precision))
        assert mapped["words"].tolist() == words.tolist()
        assert mapped["last"].tolist() == words[4:].tolist()
        assert not mapped["words"].flags.writeable

    @pytest.mark.parametrize(
        ("offset", "rows"), [(0, 7), (4, 6), (-4, 6), (2**70, 6)], ids=["rows", "end", "-", "2**70"]
    )
    def test_not_in_the_file(self, tmp_path: Path, offset: int, rows: int) -> None:
        """Places past the file's end are refused with its name."""
        (tmp_path / artifact.WEIGHTS).write_bytes(self.WORDS.tobytes())
        with pytest.raises(StartupError, match="tables are not in it") as error:
            artifact.map_tables(tmp_path, self.manifest(Table("words", offset, (rows, 4))))
        assert str(error.value).startswith(f"{tmp_path / artifact.WEIGHTS}: ")

    def test_no_file(self, tmp_path: Path) -> None:
        """Tables of an artifact without weights are refused."""
        with pytest.raises(StartupError, match="tables are not in it"):
            artifact.map_tables(tmp_path, self.manifest(Table("words", 0, (6, 4))))
