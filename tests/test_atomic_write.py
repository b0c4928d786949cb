"""A file is the old one or the new one, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from embedserve.system import atomic_write


def test_whole(tmp_path: Path) -> None:
    """The name has the new content, and nothing else is left."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    atomic_write.write(path, tmp_path / "new", lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old(tmp_path: Path) -> None:
    """Whatever `content` raises; the half that was written is gone."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write.write(path, tmp_path / "new", fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Links that somebody planted under either name are replaced, and what they name stays."""
    victim, path, temporary = (tmp_path / name for name in ("victim", "file", "new"))
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    temporary.symlink_to(victim)
    atomic_write.write(path, temporary, lambda file: file.write(b"new"))
    assert (victim.read_bytes(), path.read_bytes()) == (b"precious", b"new")
    assert not path.is_symlink()


def test_owner_and_mode_stay(tmp_path: Path) -> None:
    """As they are of a file that is given."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write = lambda file: file.write(b"new")  # noqa: E731
    atomic_write.write(path, tmp_path / "new", write, like=path.stat())
    assert path.stat().st_mode & 0o7777 == 0o640
    assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid())
