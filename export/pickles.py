"""Pickled checkpoints -> safetensors, if the operator asks for it.

A pickle can run code when it is read, so a confined process reads it, with weights_only
(confinement.py). What it writes is compared with a second reading, then used like any safetensors.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedserve.artifact import sha256
from embedserve.errors import Exit, StartupError
from export.files import PICKLE, PICKLE_INDEX, WEIGHTS, has_pickle_alone, load, refused
from export.sources import Progress, is_wanted

DIRECTORY = "converted"

_SECONDS = 3600.0
_ROOT = Path(__file__).parents[1]
# -I: no PYTHONPATH, no user packages, nothing of the working directory; the project comes last.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from export.unpickling import main; sys.exit(main(sys.argv[1:]))"
)

# name -> dtype, shape, sha256 of the numbers.
Tensors = Mapping[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Converted:
    """A model's directory with safetensors only, and the pickles they came from: path -> sha256."""

    directory: Path
    origins: Mapping[str, str]


def convert(directory: Path, scratch: Path, progress: Progress) -> Converted:
    """Return a model whose modules all have safetensors; `directory` itself if they already do.

    `directory` is only read: converted weights go to `scratch`, beside links to its other files.
    StartupError: 65 for a pickle that holds anything but tensors, is damaged or would run
    code (it is not run); 69 if this system cannot confine the process; 73 for a full disk.
    """
    folders = [folder for folder in _folders(directory) if has_pickle_alone(folder)]
    if not folders:
        return Converted(directory, {})
    view = scratch / DIRECTORY
    _link(directory, view)
    origins: dict[str, str] = {}
    for folder in folders:
        target = view / folder.relative_to(directory)
        target.mkdir(exist_ok=True)
        for pickle in _convert_folder(folder, target, scratch, progress):
            origins[pickle.relative_to(directory).as_posix()] = sha256(pickle)
    return Converted(view, origins)


def _folders(directory: Path) -> list[Path]:
    """The model's root and its modules' folders."""
    inside = sorted(path for path in directory.iterdir() if path.is_dir())
    return [directory, *(path for path in inside if is_wanted(Path(path.name, "config.json")))]


def _link(directory: Path, view: Path) -> None:
    """Make `view` a directory of links to the files of a model."""
    for folder in _folders(directory):
        (view / folder.relative_to(directory)).mkdir(parents=True)
        for path in folder.iterdir():
            name = path.relative_to(directory)
            if path.is_file() and is_wanted(name) and path.name != PICKLE_INDEX:
                (view / name).symlink_to(path.resolve())


# -- one folder --------------------------------------------------------------------------------


def _convert_folder(
    folder: Path, target: Path, scratch: Path, progress: Progress
) -> Iterator[Path]:
    """Convert the only pickle of a folder, or the shards that its index names; yield each."""
    if (folder / PICKLE).is_file():
        _convert_file(folder / PICKLE, target / WEIGHTS[0], scratch, progress)
        yield folder / PICKLE
        return
    shards = _shards(folder / PICKLE_INDEX)
    names: dict[str, str] = {}
    for shard, expected in shards.items():
        new = _renamed(shard)
        found = _convert_file(folder / shard, target / new, scratch, progress)
        if set(found) != expected:
            odd = ", ".join(sorted(set(found) ^ expected)[:3])
            raise refused(f"{folder / PICKLE_INDEX}: weight_map and {shard} differ in {odd}")
        names.update(dict.fromkeys(found, new))
        yield folder / shard
    size = sum((target / _renamed(shard)).stat().st_size for shard in shards)
    index = {"metadata": {"total_size": size}, "weight_map": names}
    (target / WEIGHTS[1]).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _shards(index: Path) -> dict[str, set[str]]:
    """Return shard -> the names of its tensors."""
    shards: dict[str, set[str]] = {}
    weight_map = load(index, dict).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise refused(
            f"{index}: weight_map = {weight_map!r}; names of tensors and files are accepted"
        )
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w-]+(\.[\w-]+)*\.bin", shard):
            raise refused(f"{index}: names {shard!r}; a .bin file beside it is accepted")
        if not (index.parent / shard).is_file():
            raise refused(f"{index.parent / shard}: no such file; {index.name} names it")
        shards.setdefault(shard, set()).add(tensor)
    return shards


def _renamed(shard: str) -> str:
    return f"{shard.removesuffix('.bin').removeprefix('pytorch_')}.safetensors"


# -- one file ----------------------------------------------------------------------------------


def _convert_file(pickle: Path, target: Path, scratch: Path, progress: Progress) -> Tensors:
    """Write `target` and compare it with a fresh reading of `pickle`; return what it holds."""
    progress(f"reading {pickle.name} in a confined process")
    with target.open("xb") as out:
        _run("write", pickle, scratch, out.fileno())
        os.fsync(out.fileno())
    progress(f"comparing {target.name} with {pickle.name}")
    expected: Tensors = _run("describe", pickle, scratch)["tensors"]
    found = _described(target)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise StartupError(
                f"{pickle}: {name} was read as {expected.get(name)} and written as "
                f"{found.get(name)}; nothing was published",
                Exit.SOFTWARE,
            )
    return found


def _described(path: Path) -> Tensors:
    """The tensors of safetensors as its own library reads them."""
    from safetensors import SafetensorError, safe_open

    from export.unpickling import described

    try:
        with safe_open(path, framework="pt") as file:
            return {name: described(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise StartupError(f"{path}: was not written completely: {error}", Exit.SOFTWARE) from error


def _run(action: str, pickle: Path, scratch: Path, out: int | None = None) -> dict[str, Any]:
    """Run unpickling.py on `pickle`; return its answer. It gets nothing of the environment."""
    command = [sys.executable, "-I", "-c", _PROGRAM, str(_ROOT), action, str(pickle.resolve())]
    command += [] if out is None else [str(out)]
    report = scratch / "unpickling.json"
    with report.open("wb") as stdout, (scratch / "unpickling.log").open("wb") as stderr:
        try:
            done = subprocess.run(  # noqa: S603  # this interpreter, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
                cwd=scratch,
                pass_fds=() if out is None else (out,),
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise refused(f"{pickle}: reading it took more than {_SECONDS:.0f} s") from None
    try:
        answer = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        answer = None
    if not isinstance(answer, dict):
        raise refused(f"{pickle}: the process that read it {_end(done.returncode)}")
    return _checked(answer, pickle)


def _checked(answer: dict[str, Any], pickle: Path) -> dict[str, Any]:
    if isinstance(answer.get("errno"), int):
        raise OSError(answer["errno"], os.strerror(answer["errno"]), str(pickle.name))
    if "unavailable" in answer:
        raise StartupError(
            f"{pickle}: a process that reads a pickle cannot be confined here: "
            f"{answer['unavailable']}; convert it elsewhere",
            Exit.UNAVAILABLE,
        )
    if not isinstance(answer.get("tensors"), dict):
        raise refused(f"{pickle}: is refused: {answer.get('error')}")
    return answer


def _end(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}: memory, time, or a forbidden call"
    return f"ended with status {status} and no answer"
