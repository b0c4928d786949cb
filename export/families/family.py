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

    `positions`: tokens of the longest text that learned positions allow; None: any.
    """

    output: str
    hidden_size: int
    masked_up_to: int | None = None
    positions: int | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    `keys`: keys of config.json besides export.config_keys.COMMON; a key in neither is refused.
    `prefixes`: what checkpoints that were saved with a head have before the names of tensors.
    `ignored`: patterns of tensors (fullmatch, without prefix) that no hidden state depends on.
    `build` adds the nodes. It gets the configuration as today's transformers reads it, and Layers
    over graph and checkpoint. It is called twice, first with shapes only.
    `auto_map`: the family replaces the code that auto_map in such files names; it never runs.
    `view` returns the config.json that today's transformers must see to read the files correctly,
    both for `build` and for the reference; None if the file will do. It gets the file's own keys,
    before `keys` are checked, and refuses with a reason what transformers cannot read at all.
    """

    keys: Keys
    build: Callable[[Any, Layers], Built]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    auto_map: bool = False
    view: Callable[[Json], Json | None] | None = None
