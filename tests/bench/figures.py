"""Figures of rounds: percentiles, medians, and ratios of what stood beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

# peer -> measure -> a figure a round
Figures = Mapping[str, Mapping[str, Sequence[float]]]


def percentile(values: Sequence[float], part: float) -> float:
    """The least of the values that `part` of them do not pass.

    >>> percentile([3.0, 1.0, 2.0], 0.5), percentile([3.0, 1.0, 2.0], 0.99)
    (2.0, 3.0)
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the ratios, round by round.

    >>> ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    3.0
    """
    return median(a / b for a, b in zip(over, under, strict=True))


def middle(figures: Figures, peer: str, measure: str) -> float | None:
    """The median over the rounds; None where it was not measured."""
    values = figures.get(peer, {}).get(measure)
    return median(values) if values else None


def rounded(value: float, digits: int = 4) -> float:
    """Cut to so many significant digits.

    >>> rounded(1234.5678), rounded(0.00123456)
    (1235.0, 0.001235)
    """
    return float(f"{value:.{digits}g}")
