"""A checkpoint's tensors by name: each is taken once, in float32, and none may be left over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.arrays.types import Floats
from export.files import WEIGHTS, refused, weight_files

_DTYPES = ("F32", "F16", "BF16")
_TENSORFLOW = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Checkpoint:
    """The tensors of model.safetensors, or of the parts that its index lists.

    Checkpoints that were saved with a head have `prefixes` ("bert.") before their names; a name is
    known without them. TensorFlow's LayerNorm.gamma and LayerNorm.beta become weight and bias, as
    transformers reads them in any model. `ignored` are patterns of tensors that no hidden state
    depends on.
    With `shapes_only` only names and shapes are checked: no data is read, and every array is a view
    of one zero.
    """

    def __init__(
        self,
        directory: Path,
        prefixes: Sequence[str] = (),
        ignored: Iterable[str] = (),
        shapes_only: bool = False,
    ) -> None:
        self.path = directory / WEIGHTS[0]
        self._shapes_only = shapes_only
        self._ignored = [re.compile(pattern) for pattern in ignored]
        self._files: list[Any] = []
        self._places: dict[str, tuple[Any, str]] = {}
        for part in weight_files(directory):
            file = _open(part)
            self._files.append(file)
            for key in file.keys():  # noqa: SIM118  # the library's own method, not a dict's
                name = known_name(key, prefixes)
                if name in self._places:
                    raise refused(f"{part}: holds two tensors named {name!r}; one is {key!r}")
                self._places[name] = (file, key)
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the file gives `name`. StartupError when there is no such tensor."""
        file, key = self._place(name)
        return tuple(file.get_slice(key).get_shape())

    def take(self, name: str, shape: Sequence[int]) -> Floats:
        """Return the tensor `name` in float32. StartupError when it is missing or of another shape.

        float16 and bfloat16 are widened, which is exact.
        """
        file, key = self._place(name)
        piece = file.get_slice(key)
        found, dtype = tuple(piece.get_shape()), piece.get_dtype()
        if found != tuple(shape):
            raise refused(f"{self.path}: {key} has shape {found}; config.json says {tuple(shape)}")
        if dtype not in _DTYPES:
            raise refused(f"{self.path}: {key} is {dtype}; accepted: {', '.join(_DTYPES)}")
        self._taken.add(name)
        if self._shapes_only:
            return np.broadcast_to(np.float32(0), found)
        array: Floats = file.get_tensor(key).float().numpy()
        return array

    def finish(self) -> None:
        """StartupError names the tensors that were neither taken nor match `ignored`."""
        left = [name for name in self._places.keys() - self._taken if not self._is_ignored(name)]
        if left:
            shown = ", ".join(sorted(left)[:5])
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise refused(f"{self.path}: tensors that the model has no place for: {shown}{more}")

    def _place(self, name: str) -> tuple[Any, str]:
        if name not in self._places:
            raise refused(f"{self.path}: tensor {name!r} is missing")
        return self._places[name]

    def _is_ignored(self, name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in self._ignored)


def known_name(key: str, prefixes: Sequence[str]) -> str:
    name = next((key.removeprefix(p) for p in prefixes if key.startswith(p)), key)
    for old, new in _TENSORFLOW.items():
        name = name.replace(old, new)
    return name


def _open(path: Path) -> Any:
    from safetensors import safe_open

    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # the library raises its own bare Exception
        raise refused(f"{path}: cannot be read as safetensors: {error}") from error
