"""Work that is done in steps of a few milliseconds: Step, Steps, Task."""

from __future__ import annotations

from collections.abc import Generator, Hashable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Step(NamedTuple):
    """What was done between two moments at which a slice may end.

    `cost`: units of work; `held`: bytes that are kept of it until the request is answered.
    """

    cost: int
    held: int = 0


Steps = Generator[Step, None, T]


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """Work in steps of a few milliseconds. `cost`: the units of all steps together.

    `kind`: work of one kind takes about the same time a unit.
    """

    kind: Hashable
    cost: int
    steps: Steps[T]
