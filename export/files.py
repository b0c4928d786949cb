"""Reads a model's JSON files strictly: unknown keys and wrong types are refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from embedserve.errors import Exit, StartupError
from embedserve.system import regular_file

Json = dict[str, Any]

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_PICKLES = (PICKLE, PICKLE_INDEX, "model.pt", "tf_model.h5")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def load(path: Path, kind: type[Any]) -> Any:
    try:
        value = json.loads(regular_file.read_text(path))
    except FileNotFoundError:
        raise refused(f"{path}: no such file; a sentence-transformers model has it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise refused(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, kind):
        raise refused(f"{path}: holds {type(value).__name__}; accepted: {kind.__name__}")
    return value


def check_keys(config: Json, keys: Mapping[str, tuple[object, ...] | None], path: Path) -> None:
    refuse_unknown(config, keys, str(path))
    for key, value in config.items():
        accepted = keys[key]
        if accepted is not None and value not in accepted:
            choices = ", ".join(map(repr, accepted))
            raise refused(f"{path}: {key} = {value!r} is not supported; accepted: {choices}")


def refuse_unknown(config: Json, known: Collection[str], where: str) -> None:
    for key in config:
        if key not in known:
            raise refused(f"{where}: key {key!r} is unknown; known: {', '.join(known)}")


def integer(config: Json, key: str, path: Path) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise refused(f"{path}: {key} = {value!r}; an integer from 1 is accepted")
    return value


def expect(found: int, expected: int, where: str) -> None:
    if found != expected:
        raise refused(f"{where} = {found}; the step before gives {expected}")


def inside(directory: Path, path: str) -> Path:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise refused(f"{directory / 'modules.json'}: path = {path!r} points outside the model")
    return directory / path


def refused(message: str) -> StartupError:
    return StartupError(message, Exit.DATAERR)


def refuse_pickle(directory: Path) -> None:
    """Refuse a module without safetensors: a pickle can run code when it is read."""
    if any((directory / name).is_file() for name in WEIGHTS):
        return
    pickles = [name for name in _PICKLES if (directory / name).exists()]
    what = f"only {pickles[0]}, which can run code when read" if pickles else "no such file"
    how = " (--convert-pickle NAME converts it)" if has_pickle_alone(directory) else ""
    raise refused(f"{directory / WEIGHTS[0]}: {what}; weights are accepted as safetensors{how}")


def has_pickle_alone(directory: Path) -> bool:
    """Whether a module has a pickle that can be converted, and no safetensors."""
    has_weights = any((directory / name).is_file() for name in WEIGHTS)
    return not has_weights and any((directory / n).is_file() for n in (PICKLE, PICKLE_INDEX))


def weight_bytes(directory: Path) -> int:
    """Bytes of the weights in `directory` as float32, from the headers of its files."""
    from safetensors import safe_open

    numbers = 0
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="numpy") as file:
                numbers += sum(math.prod(file.get_slice(k).get_shape()) for k in file.keys())  # noqa: SIM118
        except Exception as error:  # the library raises its own bare Exception
            raise refused(f"{path}: cannot be read as safetensors: {error}") from error
    return 4 * numbers


def weight_files(directory: Path) -> list[Path]:
    """model.safetensors, or the parts that its index lists. StartupError for a wrong index."""
    if (whole := directory / WEIGHTS[0]).is_file():
        return [whole]
    index = directory / WEIGHTS[1]
    names = load(index, dict).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise refused(f"{index}: weight_map = {names!r}; names of tensors and files are accepted")
    files = sorted({str(name) for name in names.values()})
    for name in files:
        if Path(name).name != name or not (directory / name).is_file():
            raise refused(f"{index}: names {name!r}; a file beside it is accepted")
    return [directory / name for name in files]
