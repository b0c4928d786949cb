"""What a family is: the keys of config.json it knows, the tensors it ignores, and its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from export.families.layers import Layers
from export.files import Json

# A key of config.json -> the values that are accepted; None: the graph is built from the value.
Keys = Mapping[str, tuple[object, ...] | None]


@dataclass(frozen=True, slots=True)
class Built:
    """A graph's output (b, t, h) by name, its h, and the manifest's masked_up_to.

    `positions`: the longest text that learned positions are there for; None: any.
    """

    output: str
    hidden_size: int
    masked_up_to: int | None = None
    positions: int | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    `keys` are those of config.json beyond export.config_keys.COMMON: a key in neither is refused.
    `prefixes` are put before the names of tensors by checkpoints that were saved with a head;
    `ignored` are patterns of tensors (fullmatch, without prefix) that no hidden state depends on.
    `build` adds the nodes, given the configuration as today's transformers reads it and the parts
    of layers over graph and checkpoint; it is called twice, first with shapes alone.
    `auto_map`: the family replaces the code that auto_map of such files names, which never runs.
    `view`: given config.json, returns the one with which today's transformers reads the files as
    the model that they are, both for `build` and for the reference; None when it does so as it is.
    It is called before `keys` are compared, with the file's own keys, and refuses with a reason
    what transformers cannot read at all.
    """

    keys: Keys
    build: Callable[[Any, Layers], Built]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    auto_map: bool = False
    view: Callable[[Json], Json | None] | None = None
