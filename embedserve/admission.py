"""How fast each model runs, and whether a request would wait too long: refuse at once, with 429."""

from __future__ import annotations

import math
from collections.abc import Mapping

from embedserve.batching import Shape
from embedserve.errors import RequestError

# One pass is enough for a first guess; each later pass weighs 1/20.
_RATE_WEIGHT = 0.05


class Admission:
    """Rates in cost units per second and lane. Owned by the event loop; has no clock."""

    def __init__(self, rates: Mapping[Shape, float], lanes: int, max_wait: float) -> None:
        self._rates = dict(rates)
        self._lanes = lanes
        self._max_wait = max_wait

    def measure(self, shape: Shape, cost: float, seconds: float) -> None:
        """Learn from one pass."""
        rate = cost / max(seconds, 1e-9)
        known = self._rates[shape]
        self._rates[shape] = known + _RATE_WEIGHT * (rate - known) if known else rate

    def wait(self, work: Mapping[Shape, float]) -> float:
        """Seconds for that much work on all lanes; 0 where a model's rate is not known yet."""
        waits = (cost / self._rates[shape] for shape, cost in work.items() if self._rates[shape])
        return sum(waits) / self._lanes

    def accepts(self, wait: float) -> bool:
        """Whether a request without a deadline may wait so long."""
        return wait <= self._max_wait

    def check(self, wait: float, most: float = math.inf) -> None:
        """429 where a request would wait longer than the limit, or than the `most` it gives itself.

        Its own work does not count: what an idle server could do is not refused for its size.
        """
        limit = min(self._max_wait, most)
        if wait <= limit:
            return
        whose = "are accepted" if limit == self._max_wait else "are left before its deadline"
        late = max(1, round((wait - limit) * 1000))
        raise RequestError(
            "queue_full",
            f"the request would wait for {wait:.1f} s, at most {limit:.3g} s {whose}; "
            "try again later",
            headers={
                "Retry-After": str(math.ceil(late / 1000)),
                "retry-after-ms": str(late),
            },
        )
