"""How many replicas a model should have: the policy that Ray Serve's autoscaler asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

PREDICTED_WAIT = "predicted_wait"  # what each replica reports: seconds until its queue is done


class Context(Protocol):
    """What of ray.serve.config.AutoscalingContext is used."""

    total_num_requests: float
    aggregated_metrics: Mapping[str, Mapping[Any, float]]
    config: Any


class QueueWait:
    """As many replicas as bring the predicted wait of each to `target_wait` seconds.

    Requests are counted, too, as Ray's own policy does (`target_ongoing_requests`): those that
    run hold their replica where nobody waits. But one request may be a single text or 2,048, and
    what waits is work, not requests. The larger of both counts; bounds, delays and factors of
    `autoscaling_config` are Ray's.
    """

    def __init__(self, target_wait: float = 0.5) -> None:
        if target_wait <= 0:
            raise ValueError(f"target_wait is {target_wait}; seconds above 0")
        self._target_wait = target_wait

    def __call__(self, context: Context) -> tuple[float, dict[str, Any]]:
        """Return how many replicas are wanted, and no state."""
        waits = context.aggregated_metrics.get(PREDICTED_WAIT, {})
        by_wait = sum(waits.values()) / self._target_wait
        by_requests = context.total_num_requests / context.config.get_target_ongoing_requests()
        return max(by_wait, by_requests), {}
