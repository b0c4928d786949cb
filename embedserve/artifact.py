"""The artifact directory as a type: Manifest, read, write, digests, golden vectors."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from embedserve.arrays.finishing import ACTIVATIONS
from embedserve.arrays.pooling import BAG, POOLING
from embedserve.arrays.types import Floats
from embedserve.errors import Exit, StartupError
from embedserve.system import regular_file

FORMAT = 1
MANIFEST, GRAPH, TOKENIZER, GOLDEN = "manifest.json", "model.onnx", "tokenizer.json", "golden.json"
# The graph's large tensors, in a separate file. onnxruntime maps it, so only what it reads (rows of
# an embedding table) stays in memory, shared by all sessions.
WEIGHTS = "weights.bin"
# The pooling modes as a graph, for providers that compute in a device's memory.
POOLING_GRAPH = "pooling.onnx"
FINISHING_KINDS = ("dense", "layer_norm", "normalize")
# Far above any real model, yet within what arrays and positions can hold.
MOST_COMPONENTS, MOST_VOCABULARY, MOST_TOKENS = 2**17, 2**26, 2**31
PADDING_SIDES = ("right", "left")
# Largest accepted deviation from the reference, by the artifact's precision: see `deviation`.
TOLERANCES: Mapping[str, float] = {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.04}
# Precisions whose loss is certified (Quality): the least agreement@10 that is published.
FLOORS: Mapping[str, float] = {"int8": 0.93}


@dataclass(frozen=True, slots=True)
class FinishingStep:
    """One finishing step. `weight` and `bias` name .npy files of the artifact."""

    kind: str
    eps: float = 0.0
    activation: str | None = None
    weight: str | None = None
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class Parity:
    """The certificate: this artifact compared with sentence-transformers on fixed texts.

    `longest` is the number of tokens in the longest text compared. `max_abs_difference` is the
    largest `deviation`: for int8 that is 1 - cosine. `versions` are the library versions in the
    reference's process, `graph_versions` those in the process that made the graph.
    """

    reference: str
    texts: int
    longest: int
    max_abs_difference: float
    min_cosine: float
    tolerance: float
    versions: Mapping[str, str]
    graph_versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Quality:
    """The certificate of a precision's loss: `queries` against `passages` of a fixed corpus.

    Agreement is the mean share of float32's nearest passages (10, or 1) that this artifact finds on
    `provider`; `queries_alone` with float32's vectors of the passages, an index made earlier.
    `spearman` ranks the cosines of all pairs; the cosines are those of each text's two vectors.
    `corpus` is the sha256 of the texts, `floor` the least agreement_at_10 that was accepted.
    """

    corpus: str
    queries: int
    passages: int
    provider: str
    agreement_at_10: float
    agreement_at_1: float
    queries_alone_at_10: float
    queries_alone_at_1: float
    spearman: float
    min_cosine: float
    mean_cosine: float
    floor: float


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The digest and size that a file of the artifact must have."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Table:
    """A tensor in WEIGHTS that is looked up by row: initializer's name, byte offset and shape."""

    name: str
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All facts about one exported model.

    hidden_size is h of the graph's output (b, t, h); dimension is that of the final vector.
    max_tokens counts special tokens. masked_up_to is set for graphs with two attention paths:
    sequences longer than this many tokens must run in passes without padding. converted_from:
    path -> sha256 of the pickles that the weights were converted from.
    """

    name: str
    format: int
    repository: str | None
    revision: str | None
    model_type: str
    hidden_size: int
    dimension: int
    vocabulary: int
    max_tokens: int
    pooling: tuple[str, ...]
    finishing: tuple[FinishingStep, ...]
    matryoshka: tuple[int, ...]
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    padding_side: str
    pad_token_id: int
    precision: str
    masked_up_to: int | None
    fingerprint: str
    created: str
    parity: Parity | None = None
    quality: Quality | None = None
    tables: tuple[Table, ...] = ()
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    converted_from: Mapping[str, str] = field(default_factory=dict)

    @property
    def normalized(self) -> bool:
        """Whether vectors have length 1."""
        return bool(self.finishing) and self.finishing[-1].kind == "normalize"

    @property
    def is_bag(self) -> bool:
        """Whether the graph only looks up embedding rows.

        Then a text without tokens gets a zero vector, and so may a text of unknown words.
        """
        return self.pooling == (BAG,)

    @property
    def owner(self) -> str:
        """The `owned_by` in GET models: the owner in the repository's name, else embedserve."""
        return (self.repository or "").split("/")[0] or "embedserve"


@dataclass(frozen=True, slots=True)
class Golden:
    """Texts with the reference's token ids and vectors, for the check at start."""

    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    vectors: Floats


# Fields that do not change a vector, or are derived. All others go into the fingerprint.
_NOT_IN_FINGERPRINT = (
    "name",
    "repository",
    "revision",
    "fingerprint",
    "created",
    "parity",
    "quality",
    "tables",
    "files",
    "converted_from",
)
# Written to manifest.json only when not empty: older versions do not know these keys.
_OPTIONAL: Mapping[str, Any] = {"converted_from": {}, "quality": None}


def deviation(found: Floats, expected: Floats, precision: str) -> float:
    """How far vectors (n, d) are from the reference: the largest difference of a component.

    For a precision with a floor: the largest 1 - cosine.
    """
    if precision not in FLOORS:
        return float(np.abs(found - expected).max())
    x, y = found.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines = np.sum(x * y, axis=1) / np.maximum(norms, 1e-30)
    are_zeros = ~x.any(axis=1) & ~y.any(axis=1)  # static embeddings of texts without tokens
    return float(1 - np.where(are_zeros, 1.0, cosines).min())  # a NaN stays one


def fingerprint(manifest: Manifest) -> str:
    """Return the sha256 of all that determines vectors: facts, and digests of graph and tokenizer.

    Exports of the same files give the same fingerprint: no time, version, name or report goes in.
    """
    facts = {k: v for k, v in asdict(manifest).items() if k not in _NOT_IN_FINGERPRINT}
    computing = manifest.files.keys() - {GOLDEN, POOLING_GRAPH}
    digests = {name: manifest.files[name].sha256 for name in computing}
    text = json.dumps([facts, digests], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the file's sha256 as 64 hexadecimal digits."""
    with regular_file.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(directory: Path, manifest: Manifest) -> Manifest:
    """Record every file of `directory`, set the fingerprint, write manifest.json; return it."""
    names = sorted(p.name for p in directory.iterdir() if p.name != MANIFEST)
    files = {n: FileRecord(sha256(directory / n), (directory / n).stat().st_size) for n in names}
    manifest = replace(manifest, files=files)
    manifest = replace(manifest, fingerprint=fingerprint(manifest))
    value = asdict(manifest)
    said = {k: v for k, v in value.items() if k not in _OPTIONAL or v != _OPTIONAL[k]}
    text = json.dumps(said, indent=2)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def exists(directory: Path) -> bool:
    """Whether there is an artifact, intact or not; `read` says why one cannot be read."""
    try:
        (directory / MANIFEST).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def read(directory: Path) -> Manifest:
    """Read and validate manifest.json; StartupError names the file and key.

    Does not check the files' digests: see `check_files`.
    """
    path = directory / MANIFEST
    try:
        value = json.loads(regular_file.read_text(path))
    except FileNotFoundError:
        raise StartupError(
            f"{path}: no such file; make the artifact with `python -m export {directory.name}`",
            Exit.NOINPUT,
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise StartupError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else value
        raise StartupError(
            f"{path}: format is {found!r}, this version reads {FORMAT}; export the model again"
        )
    manifest: Manifest = _decode(Manifest, {**_OPTIONAL, **value}, str(path))
    _check_choices(manifest, path)
    if fingerprint(manifest) != manifest.fingerprint:
        raise StartupError(f"{path}: fingerprint does not match its content; export again")
    _check_ranges(manifest, path)
    return manifest


def check_files(directory: Path, manifest: Manifest) -> None:
    """Raise StartupError for a missing, extra, altered or linked file; the message names it."""
    check_small_files(directory, manifest)
    check_weights(directory, manifest)


def check_small_files(directory: Path, manifest: Manifest) -> None:
    """Do all of check_files except reading the weights: takes milliseconds."""
    try:
        _check_names(directory, {MANIFEST, *manifest.files})
        for name, record in sorted(manifest.files.items()):
            if (size := (directory / name).lstat().st_size) != record.bytes:
                raise _altered(
                    directory / name, f"has {size} bytes, the manifest says {record.bytes}"
                )
    except OSError as error:
        raise StartupError(f"{directory}: cannot be read: {error}") from error
    for name in sorted(manifest.files.keys() - {WEIGHTS}):
        _check_digest(directory, manifest, name)


def check_weights(directory: Path, manifest: Manifest) -> None:
    """Refuse altered weights. Their size is known to be right, so they may load in the meantime."""
    if WEIGHTS in manifest.files:
        _check_digest(directory, manifest, WEIGHTS)


def _check_names(directory: Path, expected: set[str]) -> None:
    """Refuse a missing file, an extra file, a link, and anything that is not a regular file."""
    found = {p.name for p in directory.iterdir()}
    for name in sorted(expected ^ found):
        what = "missing from" if name in expected else "not in the manifest of"
        raise _altered(directory / name, f"{what} the artifact")
    for name in sorted(expected):
        status = (directory / name).lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise _altered(directory / name, "is a link or not a regular file")


def _check_digest(directory: Path, manifest: Manifest, name: str) -> None:
    try:
        expected, digest = manifest.files[name].sha256, sha256(directory / name)
    except OSError as error:
        raise StartupError(f"{directory / name}: cannot be read: {error}") from error
    if digest != expected:
        raise _altered(directory / name, f"has sha256 {digest}, the manifest says {expected}")


def _altered(path: Path, what: str) -> StartupError:
    return StartupError(f"{path}: {what}; export the model again: python -m export --force")


def write_golden(directory: Path, golden: Golden) -> None:
    """Write golden.json: vectors as base64 of little-endian float32."""
    value = {
        "dimension": int(golden.vectors.shape[1]),
        "texts": list(golden.texts),
        "token_ids": [list(ids) for ids in golden.token_ids],
        "vectors": [
            base64.b64encode(v.astype("<f4").tobytes()).decode("ascii") for v in golden.vectors
        ],
    }
    text = json.dumps(value, indent=1, ensure_ascii=True)
    (directory / GOLDEN).write_text(text + "\n", encoding="utf-8")


def read_golden(directory: Path) -> Golden:
    """Read golden.json; the vectors are (n, dimension) float32."""
    path = directory / GOLDEN
    try:
        value = json.loads(regular_file.read_text(path))
        rows = [np.frombuffer(base64.b64decode(v, validate=True), "<f4") for v in value["vectors"]]
        vectors = np.stack(rows).astype(np.float32)
        ids = tuple(tuple(int(i) for i in row) for row in value["token_ids"])
        golden = Golden(_decode(tuple[str, ...], value["texts"], "texts"), ids, vectors)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
        StartupError,
    ) as error:
        raise StartupError(f"{path}: cannot be read: {error}") from error
    if not len(golden.texts) == len(golden.token_ids) == len(golden.vectors) > 0:
        raise StartupError(f"{path}: texts, token_ids and vectors differ in number")
    return golden


def read_array(directory: Path, name: str) -> Floats:
    """Read a float32 .npy file of the artifact."""
    try:
        with regular_file.open_file(directory / name) as file:
            array: Floats = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # numpy raises many types for a bad header
        raise StartupError(f"{directory / name}: cannot be read: {error}") from error
    if array.dtype != np.float32:
        raise StartupError(f"{directory / name}: holds {array.dtype}, float32 is accepted")
    return array


def map_tables(directory: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Map each table of the manifest into memory, by name; rows are read from disk when used."""
    kind = np.float16 if manifest.precision == "fp16" else np.float32
    path = directory / WEIGHTS
    try:
        return {t.name: np.memmap(path, kind, "r", t.offset, t.shape) for t in manifest.tables}
    except (OSError, ValueError, OverflowError) as error:
        raise StartupError(f"{path}: the manifest's tables are not in it: {error}") from error


def _check_choices(manifest: Manifest, path: Path) -> None:
    tables: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
        ("pooling", manifest.pooling, tuple(POOLING)),
        ("finishing", tuple(s.kind for s in manifest.finishing), FINISHING_KINDS),
        ("padding_side", (manifest.padding_side,), PADDING_SIDES),
        ("precision", (manifest.precision,), tuple(TOLERANCES)),
        (
            "activation",
            tuple(s.activation for s in manifest.finishing if s.activation),
            tuple(ACTIVATIONS),
        ),
    ]
    for key, values, accepted in tables:
        for value in values:
            if value not in accepted:
                raise StartupError(f'{path}: {key} = "{value}"; one of {", ".join(accepted)}')
    for step in manifest.finishing:
        for name in (step.weight, step.bias):
            if name is not None and name not in manifest.files:
                raise StartupError(f'{path}: finishing names "{name}", which is not in files')
    if not manifest.pooling:
        raise StartupError(f"{path}: pooling is empty; one of {', '.join(POOLING)}")


def _check_ranges(manifest: Manifest, path: Path) -> None:
    """Refuse a number that no model has. What only the graph knows is checked when it loads."""
    vocabulary, dimension = manifest.vocabulary, manifest.dimension
    masked = 1 if manifest.masked_up_to is None else manifest.masked_up_to
    facts: list[tuple[str, float, float, float]] = [
        ("hidden_size", manifest.hidden_size, 1, MOST_COMPONENTS),
        ("dimension", dimension, 1, MOST_COMPONENTS),
        ("vocabulary", vocabulary, 1, MOST_VOCABULARY),
        ("max_tokens", manifest.max_tokens, 1, MOST_TOKENS),
        ("pad_token_id", manifest.pad_token_id, 0, vocabulary - 1),
        ("masked_up_to", masked, 1, MOST_TOKENS),
        *(("matryoshka", size, 1, dimension) for size in manifest.matryoshka),
        *(("eps", step.eps, 0, 1) for step in manifest.finishing),
        *((f"bytes of {name}", file.bytes, 0, 2**63) for name, file in manifest.files.items()),
        *(("offset", table.offset, 0, 2**63) for table in manifest.tables),
        *(("shape", size, 1, 2**40) for table in manifest.tables for size in table.shape),
    ]
    for name, value, least, most in facts:
        if not least <= value <= most:
            raise StartupError(f"{path}: {name} = {value}; {least} to {most} is accepted")
    if manifest.default_prompt_name not in (None, *manifest.prompts):
        found = manifest.default_prompt_name
        raise StartupError(f'{path}: default_prompt_name = "{found}"; must be a name in prompts')


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Build `kind` (a dataclass, tuple, mapping or scalar type) from JSON; types must match."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and type(None) in args:
            return None
        return _decode(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {k: _decode(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hasattr(kind, "__dataclass_fields__") and isinstance(value, dict):
        return _decode_fields(kind, value, where)
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is kind and not _is_odd(value):
        return value
    raise StartupError(f"{where}: {value!r} is not a valid {getattr(kind, '__name__', kind)}")


def _is_odd(value: Any) -> bool:
    """Whether a string has half a surrogate pair, or a float is infinite or not a number."""
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    return isinstance(value, float) and not math.isfinite(value)


def _decode_fields(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}
    if names != set(value):
        odd = ", ".join(sorted(names ^ set(value)))
        raise StartupError(f"{where}: missing or unknown keys: {odd}; export the model again")
    return kind(**{k: _decode(hints[k], v, f"{where}: {k}") for k, v in value.items()})
