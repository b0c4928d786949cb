"""Refuses models before their weights are downloaded, by file names and two small files."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any

from export.files import Json, refused

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_NO_CODE = "it is never run, and no family here replaces it"

ReadJson = Callable[[str], Any]


def folders(model: str, names: Collection[str], read_json: ReadJson) -> tuple[str, ...]:
    """Return the folders of the model's modules, the Transformer's first; "" is the root.

    `names` are the paths of the model's files, `read_json` reads one of them. StartupError (65)
    if it is not a sentence-transformers model, or needs remote code.
    """
    if "modules.json" not in names:
        raise refused(
            f"{model}: no modules.json: not a sentence-transformers model; load it with "
            "sentence-transformers, save it, and add it with --from DIR"
        )
    modules = read_json("modules.json")
    if not isinstance(modules, list) or not modules or not all(map(_is_module, modules)):
        raise refused(f"{model}: modules.json: a list of modules with type and path is accepted")
    found = tuple(_folder(module["path"]) for module in modules)
    name = inside(found[0], "config.json")
    config = read_json(name) if name in names else {}
    if not isinstance(config, dict):
        raise refused(f"{model}: {name} holds {type(config).__name__}; accepted: an object")
    if not _is_replaced(config):
        _refuse_code(model, name, config, [module["type"] for module in modules])
    return found


def only_pickle(names: Collection[str], folders: Collection[str]) -> str | None:
    """The first weights file in the modules' folders that exists only as a pickle."""
    return next((pickle for folder in folders for pickle in _only_pickle(names, folder)), None)


def _only_pickle(names: Collection[str], folder: str) -> list[str]:
    here = [name for name in names if _folder(PurePosixPath(name).parent.as_posix()) == folder]
    if any(name.endswith(".safetensors") for name in here):
        return []
    return [name for name in here if PurePosixPath(name).name in _PICKLES]


def inside(folder: str, name: str) -> str:
    """The path of a file in a folder of the model."""
    return f"{folder}/{name}" if folder else name


def _is_replaced(config: Json) -> bool:
    """Whether a family here replaces the code of such models."""
    # Imported here: they need onnx, which the documentation's tests do not have.
    from export.families import jina_v3_adapters
    from export.families.registry import FAMILIES

    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    is_family = family is not None and family.auto_map
    return is_family or jina_v3_adapters.is_hub_form(config)


def _is_module(value: Any) -> bool:
    keys = ("type", "path")
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in keys)


def _folder(path: str) -> str:
    return "" if path in ("", ".") else PurePosixPath(path).as_posix()


def _refuse_code(model: str, name: str, config: Json, types: Collection[str]) -> None:
    if "auto_map" in config:
        kind = config.get("model_type")
        raise refused(f"{model}: {name}: auto_map (of model_type {kind!r}) is code; {_NO_CODE}")
    for kind in types:
        if not kind.startswith("sentence_transformers."):
            raise refused(f"{model}: modules.json: type = {kind!r} is code; {_NO_CODE}")
