"""Where a model's files come from (directory, hub, package), checked by digest."""

from __future__ import annotations

import functools
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from embedserve.artifact import sha256
from embedserve.config.models_toml import ModelSpec, Package
from embedserve.errors import Exit, StartupError
from export import packages
from export.files import WEIGHTS
from export.source_error import UnusableError

Progress = Callable[[str], None]

# The files of a sentence-transformers model: none of other engines; pickles only on request.
_ALLOWED = ("*.json", "*.safetensors", "*.txt", "*.model")
_PICKLES = ("pytorch_model*.bin", "*/pytorch_model.bin")
_IGNORED = ("onnx/*", "openvino/*", "*/*/*", ".*")

_PROBE_SECONDS = 5.0  # after this, a hub without an answer counts as unreachable


@dataclass(frozen=True, slots=True)
class Source:
    """A directory whose files match the pinned digests, and where it came from, in words."""

    directory: Path
    origin: str


def open(  # noqa: A001  # read as sources.open
    spec: ModelSpec,
    from_dir: Path | None,
    scratch: Path,
    progress: Progress = lambda _: None,
    pickles: bool = False,
) -> Source:
    """Return the first source that has the model's files: `from_dir`, the hub, the package.

    `from_dir` is only read. `pickles`: get pickled weights from the hub, too. StartupError names
    every source and its reason; its status is the worst: 73 (disk), 65 (wrong files), 66, 69.
    """
    reasons: list[tuple[str, UnusableError]] = []
    for origin, get in _candidates(spec, from_dir, scratch, pickles):
        if reasons:
            progress("{}: {}".format(*reasons[-1]))
        try:
            progress(f"looking at {origin}")
            directory = get()
            _check_digests(directory, spec)
            return Source(directory, origin)
        except UnusableError as error:
            reasons.append((origin, error))
    if not reasons:
        raise StartupError(
            f"models.toml: [models.{spec.name}] has neither repository nor package; give its "
            f"files with `python -m export {spec.name} --from DIR`",
            Exit.UNAVAILABLE,
        )
    tried = "; ".join(f"{origin}: {error}" for origin, error in reasons)
    raise StartupError(f"no source has its files: {tried}", _worst(e for _, e in reasons))


def digests(directory: Path, pickles: bool = False) -> dict[str, str]:
    """Return path -> sha256 of the files that a model is made of, in root and module folders."""
    patterns = (*_ALLOWED, *_PICKLES) if pickles else _ALLOWED
    found = (path for pattern in ("*", "*/*") for path in directory.glob(pattern))
    names = {p.relative_to(directory).as_posix(): p for p in found if p.is_file()}
    return {n: sha256(p) for n, p in sorted(names.items()) if is_wanted(PurePosixPath(n), patterns)}


def is_wanted(name: PurePath, patterns: Iterable[str] = _ALLOWED) -> bool:
    """Whether a file belongs to a model, by its path in it."""
    return any(name.match(p) for p in patterns) and not any(name.match(p) for p in _IGNORED)


def _worst(errors: Iterator[UnusableError]) -> Exit:
    statuses = {error.status for error in errors}
    order = (Exit.CANTCREAT, Exit.DATAERR, Exit.NOINPUT, Exit.UNAVAILABLE)
    return next(status for status in order if status in statuses)


def _candidates(
    spec: ModelSpec, from_dir: Path | None, scratch: Path, pickles: bool
) -> Iterator[tuple[str, Callable[[], Path]]]:
    if from_dir is not None:
        yield f"directory {from_dir}", lambda: _from_directory(from_dir)
    if spec.repository is not None:
        name = f"hub {spec.repository} at {(spec.revision or '')[:12]}"
        yield name, lambda: _from_hub(spec, pickles)
    if spec.package:
        yield _in_words(spec.package), lambda: packages.fetch(spec.package, scratch)


def _in_words(wheels: Sequence[Package]) -> str:
    first = f"{wheels[0].name} {wheels[0].version}"
    if len(wheels) == 1:
        return f"package {first}"
    return f"packages {first} to {wheels[-1].name} {wheels[-1].version}"


def _check_digests(directory: Path, spec: ModelSpec) -> None:
    for name, expected in spec.sha256.items():
        path = directory / name
        if not path.is_file():
            raise UnusableError(f"{name} is missing", Exit.DATAERR)
        if (found := sha256(path)) != expected:
            raise UnusableError(f"{name} has sha256 {found}, expected {expected}", Exit.DATAERR)


# -- a directory -------------------------------------------------------------------------------


def _from_directory(directory: Path) -> Path:
    if not directory.is_dir():
        above = directory.parent  # --from itself, which is the model or has it in a subfolder
        raise UnusableError(f"no such directory, and {above} has no modules.json", Exit.NOINPUT)
    for path in (*directory.glob("*"), *directory.glob("*/*")):
        # A library that opens a pipe would wait for a writer.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UnusableError(
                f"{path.relative_to(directory)} is a pipe, a socket or a device; regular files "
                "are accepted",
                Exit.DATAERR,
            )
    return directory


# -- the hub -----------------------------------------------------------------------------------


def _from_hub(spec: ModelSpec, pickles: bool) -> Path:
    """Download the pinned revision into the hub's own cache, or find it there."""
    directory = _snapshot(spec, _ALLOWED)
    if pickles and not any((directory / name).exists() for name in WEIGHTS):
        directory = _snapshot(spec, (*_ALLOWED, *_PICKLES))
    elif pickles:
        directory = _snapshot(spec, (*_ALLOWED, _PICKLES[1]))
    return directory


def _snapshot(spec: ModelSpec, patterns: Sequence[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    problem = _probe(constants.ENDPOINT)
    try:
        directory = snapshot_download(
            str(spec.repository),
            revision=spec.revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(_IGNORED),
            etag_timeout=_PROBE_SECONDS,
            local_files_only=problem is not None,
        )
    except LocalEntryNotFoundError:
        raise UnusableError(f"cannot be reached: {problem or 'the connection broke'}") from None
    except HfHubHTTPError as error:
        raise UnusableError(f"refused: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise _io_error(error, "cannot be read") from error
    if not (Path(directory) / "modules.json").exists():
        raise UnusableError(f"has no modules.json{f', and {problem}' if problem else ''}")
    return Path(directory)


@functools.cache
def _probe(url: str) -> str | None:
    """Return why the hub cannot be reached, None if it answers anything at all; asks only once.

    In a thread of its own: name look-up has no timeout, and if a host drops packets, each of its
    addresses would take the full timeout.
    """
    problems = [f"no answer within {_PROBE_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310  # the hub's own
            urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()  # noqa: S310
            problems.clear()
        except urllib.error.HTTPError:
            problems.clear()
        except urllib.error.URLError as error:
            problems[0] = str(error.reason)
        except OSError as error:
            problems[0] = str(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return problems[0] if problems else None


def _io_error(error: OSError, what: str) -> UnusableError:
    if error.errno is not None and error.strerror:
        return UnusableError(f"{error.filename or ''}: {os.strerror(error.errno)}", Exit.CANTCREAT)
    return UnusableError(f"{what}: {str(error).splitlines()[0]}")
