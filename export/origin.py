"""The files of a model to add, from a directory or the hub, checked before and after download."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from embedserve.escapes import escaped
from export import admission, files, hub, sources
from export.card import Decision
from export.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Files:
    """A model's files on this machine, and their origin as keys of its table.

    `digests`: path -> sha256 of every file that can change a vector.
    """

    directory: Path
    digests: Mapping[str, str]
    decisions: Sequence[Decision]


def from_directory(
    name: str, repository: str | None, revision: str | None, source: Path, convert: bool
) -> Files:
    """Read a directory as it is; repository and revision go into the table if both are given.

    `convert`: weights may be a pickle. StartupError (65) if `admission` refuses the model.
    """
    names = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
    folders = admission.folders(name, names, lambda path: files.load(source / path, object))
    pickle = admission.only_pickle(names, folders)
    if pickle is not None and not convert:
        raise _pickle_error(str(source / pickle))
    decisions: list[Decision] = []
    if repository is not None and revision is not None:
        decisions.append(Decision("repository", repository, "command line"))
        decisions.append(Decision("revision", revision, "command line"))
    return Files(source, _digests(source, folders, pickle is not None), decisions)


def from_hub(
    name: str, repository: str, revision: str | None, known: Catalogue, convert: bool
) -> Files:
    """Download a model at the commit that `revision` names now; None: the newest.

    Refuses what it can from the small files, before it downloads the weights. `convert`: weights
    may be a pickle. StartupError 65, or 69 if the hub does not give the files.
    """
    listing = hub.look_up(repository, revision)
    if reason := known.reason(listing.repository):  # the hub may have renamed it
        raise StartupError(f"{listing.repository}: known not to work: {reason}", Exit.DATAERR)
    names = listing.files.keys()
    folders = admission.folders(listing.repository, names, lambda n: hub.read_json(listing, n))
    pickle = admission.only_pickle(names, folders)
    if pickle is not None and not convert:
        raise _pickle_error(f"{listing.repository}: {pickle}")

    def progress(message: str) -> None:
        print(escaped(f"{name}: {message}"), file=sys.stderr, flush=True)

    spec = ModelSpec(name, repository=listing.repository, revision=listing.commit)
    with tempfile.TemporaryDirectory() as scratch:
        source = sources.open(spec, None, Path(scratch), progress, pickle is not None)
    given = "as given" if revision == listing.commit else f"hub, {revision or 'the newest'}"
    decisions = (
        Decision("repository", listing.repository, "hub"),
        Decision("revision", listing.commit, given),
    )
    digests = _digests(source.directory, folders, pickle is not None)
    _check_download(listing, digests)
    return Files(source.directory, digests, decisions)


def _pickle_error(path: str) -> StartupError:
    return StartupError(
        f"{path}: the weights exist only as a pickle, which can run code when it is read; "
        "--convert-pickle converts it",
        Exit.DATAERR,
    )


def _check_download(listing: hub.Listing, found: Mapping[str, str]) -> None:
    for name, digest in found.items():
        expected = listing.files.get(name)
        if expected is not None and expected != digest:
            raise StartupError(
                f"{listing.repository}: {name} has sha256 {digest}, the hub says {expected}; "
                "remove it from the hub's cache and try again",
                Exit.DATAERR,
            )


# What sentence-transformers reads in the root; in a module's folder every file counts.
_ROOT = (
    "modules.json",
    "config_sentence_transformers.json",
    "config.json",
    "sentence_*_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.safetensors",
    "model.safetensors.index.json",
)
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def _digests(directory: Path, folders: Sequence[str], pickles: bool) -> dict[str, str]:
    found = {PurePosixPath(n): d for n, d in sources.digests(directory, pickles).items()}
    root = (*_ROOT, *_PICKLES) if pickles else _ROOT
    return {str(path): d for path, d in found.items() if _matters(path, root, folders)}


def _matters(path: PurePosixPath, root: Sequence[str], folders: Sequence[str]) -> bool:
    if path.parent == PurePosixPath("."):
        return any(path.match(pattern) for pattern in root)
    return str(path.parent) in folders
