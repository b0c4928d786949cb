"""How an artifact reaches the nodes of a Ray cluster: by path, working directory or object store.

However it arrives, a node checks it as the server does at start: every digest, the fingerprint, and
the golden vectors.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from embedserve import artifact
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import StartupError
from embedserve.model import providers
from embedserve.model.loading import load_model
from embedserve.model.model import Model
from embedserve.model.providers import PROVIDERS


class Shipped(Protocol):
    """An artifact on its way to nodes."""

    def directory(self) -> AbstractContextManager[Path]:
        """On a node: where the artifact is while it is loaded."""


@dataclass(frozen=True, slots=True)
class ByPath:
    """The same path on every node: in the image, or on a shared or prepared disk."""

    path: Path

    @contextlib.contextmanager
    def directory(self) -> Iterator[Path]:
        yield self.path


@dataclass(frozen=True, slots=True)
class ByWorkingDirectory:
    """The job's working directory, which Ray copies to every node once."""

    @contextlib.contextmanager
    def directory(self) -> Iterator[Path]:
        yield Path.cwd()


@dataclass(frozen=True, slots=True)
class ByObjectStore:
    """Files in Ray's object store, by name: each node fetches them once, from any that has them."""

    files: Mapping[str, Any]  # ObjectRef of (bytes,) uint8

    @classmethod
    def put(cls, directory: Path, ray: Any) -> ByObjectStore:
        """Put each file of an artifact into the object store; it stays while the result is held."""
        paths = [path for path in directory.iterdir() if path.is_file()]
        return cls({path.name: ray.put(np.fromfile(path, np.uint8)) for path in paths})

    @contextlib.contextmanager
    def directory(self) -> Iterator[Path]:
        """A temporary directory, removed after loading; files that are mapped stay readable."""
        import ray

        with tempfile.TemporaryDirectory(prefix="embedserve-") as place:
            for name, content in zip(self.files, ray.get(list(self.files.values())), strict=True):
                content.tofile(Path(place) / name)
            yield Path(place)


# --artifacts-by: what the machine that starts the job does with the artifact's directory.
SHIPPING: Mapping[str, Callable[[Path, Any], Shipped]] = {
    "path": lambda directory, ray: ByPath(directory),
    "working-dir": lambda directory, ray: ByWorkingDirectory(),
    "object-store": ByObjectStore.put,
}


def load(shipped: Shipped, spec: ModelSpec, fingerprint: str, provider: str, cores: int) -> Model:
    """On a node: load what was shipped, with all checks. StartupError names what is wrong."""
    with shipped.directory() as directory:
        found = artifact.read(directory).fingerprint
        if found != fingerprint:
            raise StartupError(
                f"{directory}: has the fingerprint {found:.12}, the job's is {fingerprint:.12}"
            )
        threads = providers.tokenizing(PROVIDERS[provider], cores)
        model, _ = load_model(spec, directory, provider, tokenizing=threads)
    return model
