"""modules.json and the modules' own files: pooling modes, and the steps after pooling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from embedserve.arrays.finishing import ACTIVATIONS
from embedserve.arrays.pooling import BAG, POOLING
from embedserve.arrays.types import Floats
from export.files import (
    WEIGHTS,
    check_keys,
    expect,
    inside,
    integer,
    load,
    refuse_pickle,
    refuse_unknown,
    refused,
)


@dataclass(frozen=True, slots=True)
class Finish:
    """One step after pooling. dense: weight (o, i) and bias (o,); layer_norm: both (h,) or none.

    `added`: it comes from models.toml, not from the files.
    """

    kind: Literal["dense", "layer_norm", "normalize"]
    eps: float = 0.0
    activation: str | None = None
    weight: Floats | None = None
    bias: Floats | None = None
    added: bool = False


# -- modules.json ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of modules.json: a key of MODULES, and its folder."""

    kind: str
    path: str


def _class_paths(name: str, folder: str) -> tuple[str, ...]:
    """The names of a class in modules.json, from sentence-transformers 2.x to 6.x."""
    new = f"sentence_transformers.{folder}.modules"
    return (
        f"sentence_transformers.models.{name}",
        f"sentence_transformers.models.{name}.{name}",
        f"{new}.{name}",
        f"{new}.{_snake(name)}.{name}",
    )


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


# A model and its pooling in one module.
STATIC = "StaticEmbedding"

# Normalize moved from sentence_transformer to base in 6.0.
MODULES: Mapping[str, tuple[str, ...]] = {
    STATIC: _class_paths(STATIC, "sentence_transformer"),
    "Transformer": _class_paths("Transformer", "base"),
    "Pooling": _class_paths("Pooling", "sentence_transformer"),
    "Dense": _class_paths("Dense", "base"),
    "LayerNorm": _class_paths("LayerNorm", "sentence_transformer"),
    "Normalize": (
        *_class_paths("Normalize", "sentence_transformer"),
        *_class_paths("Normalize", "base")[2:],
    ),
}
_KIND = {path: kind for kind, paths in MODULES.items() for path in paths}
_AFTER_POOLING = ("Dense", "LayerNorm", "Normalize")


def read(path: Path) -> list[Module]:
    entries = load(path, list)
    modules = []
    for i, entry in enumerate(entries):
        where = f"{path}: [{i}]"
        if not isinstance(entry, dict):
            raise refused(f"{where} is {entry!r}; an object is accepted")
        refuse_unknown(entry, ("idx", "name", "path", "type", "kwargs"), where)
        if entry.get("kwargs"):
            raise refused(f"{where} kwargs = {entry['kwargs']!r}; none are accepted")
        if entry.get("type") not in _KIND:
            raise refused(f"{where} type = {entry.get('type')!r}; accepted: {', '.join(MODULES)}")
        modules.append(Module(_KIND[entry["type"]], str(entry.get("path", ""))))
    kinds = [module.kind for module in modules]
    pooled = 1 if kinds[:1] == [STATIC] else 2
    is_known = pooled == 1 or kinds[:2] == ["Transformer", "Pooling"]
    if not is_known or not set(kinds[pooled:]) <= set(_AFTER_POOLING):
        raise refused(
            f"{path}: modules are {', '.join(kinds)}; accepted: Transformer, Pooling, or "
            f"{STATIC}, then any of {', '.join(_AFTER_POOLING)}"
        )
    return modules


# -- pooling -----------------------------------------------------------------------------------

# sentence-transformers' older boolean keys, in its order of concatenation.
_OLD_POOLING: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SIZES = ("embedding_dimension", "word_embedding_dimension")
_MODES = tuple(mode for mode in POOLING if mode != BAG)


def pooling(path: Path) -> tuple[int, tuple[str, ...]]:
    """Return the size of the token embeddings and the modes, in their order."""
    config = load(path, dict)
    refuse_unknown(config, (*_OLD_POOLING, *_SIZES, "pooling_mode", "include_prompt"), str(path))
    if config.get("include_prompt", True) is not True:
        found = config["include_prompt"]
        raise refused(f"{path}: include_prompt = {found!r} is not supported; accepted: true")
    for key in _OLD_POOLING.keys() & config.keys():
        if type(config[key]) is not bool:
            raise refused(f"{path}: {key} = {config[key]!r}; true or false")
    old = tuple(mode for key, mode in _OLD_POOLING.items() if config.get(key)) or ("mean",)
    value = config.get("pooling_mode", old)
    modes = (value,) if isinstance(value, str) else tuple(value or ())
    if not modes or any(mode not in _MODES for mode in modes):
        raise refused(f"{path}: pooling_mode = {value!r}; one or several of {', '.join(_MODES)}")
    size = next((key for key in _SIZES if key in config), _SIZES[0])
    return integer(config, size, path), modes


# -- what follows pooling ----------------------------------------------------------------------


def finishing(
    directory: Path, modules: Iterable[Module], size: int
) -> tuple[tuple[Finish, ...], int]:
    """Return the steps and the size of the last one's output."""
    steps = []
    for module in modules:
        step, size = _STEPS[module.kind](inside(directory, module.path), size)
        steps.append(step)
    return tuple(steps), size


_SENTENCE = ("sentence_embedding",)
_DENSE_KEYS: Mapping[str, tuple[object, ...] | None] = {
    "in_features": None,
    "out_features": None,
    "bias": (True, False),
    "activation_function": tuple(ACTIVATIONS),
    "module_input_name": _SENTENCE,
    "module_output_name": (*_SENTENCE, None),
    "use_residual": (False,),
}


def _dense(directory: Path, size: int) -> tuple[Finish, int]:
    path = directory / "config.json"
    config = load(path, dict)
    check_keys(config, _DENSE_KEYS, path)
    expect(integer(config, "in_features", path), size, f"{path}: in_features")
    out = integer(config, "out_features", path)
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (out, size)}
    if config.get("bias", True):
        shapes["linear.bias"] = (out,)
    weights = _weights(directory, shapes)
    # Without the key sentence-transformers uses Tanh.
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    weight, bias = weights["linear.weight"], weights.get("linear.bias")
    return Finish("dense", activation=activation, weight=weight, bias=bias), out


def _layer_norm(directory: Path, size: int) -> tuple[Finish, int]:
    path = directory / "config.json"
    config = load(path, dict)
    refuse_unknown(config, ("dimension",), str(path))
    expect(integer(config, "dimension", path), size, f"{path}: dimension")
    weights = _weights(directory, {"norm.weight": (size,), "norm.bias": (size,)})
    # torch.nn.LayerNorm's default, which the module cannot change.
    step = Finish("layer_norm", eps=1e-5, weight=weights["norm.weight"], bias=weights["norm.bias"])
    return step, size


_NORMALIZE_KEYS: Mapping[str, tuple[object, ...] | None] = {
    "module_input_name": _SENTENCE,
    "module_output_name": (*_SENTENCE, None),
}


def _normalize(directory: Path, size: int) -> tuple[Finish, int]:
    if (path := directory / "config.json").exists():
        check_keys(load(path, dict), _NORMALIZE_KEYS, path)
    return Finish("normalize"), size


_STEPS = {"Dense": _dense, "LayerNorm": _layer_norm, "Normalize": _normalize}


def _weights(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Floats]:
    """Read a module's safetensors as float32, exactly the tensors of `shapes`."""
    refuse_pickle(directory)
    path = directory / WEIGHTS[0]
    from safetensors.torch import load_file  # numpy's reader does not know bfloat16

    try:
        weights = {k: np.asarray(v.float().numpy(), np.float32) for k, v in load_file(path).items()}
    except Exception as error:  # the library raises its own bare Exception
        raise refused(f"{path}: cannot be read as safetensors: {error}") from error
    found = {name: weight.shape for name, weight in weights.items()}
    if found != shapes:
        raise refused(f"{path}: holds {found}; accepted: {dict(shapes)}")
    return weights
