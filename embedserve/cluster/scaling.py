"""How many replicas a model should have: a policy for Ray Serve's autoscaler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

PREDICTED_WAIT = "predicted_wait"  # what each replica reports: seconds until its queue is done


class Context(Protocol):
    """The part of ray.serve.config.AutoscalingContext that is used."""

    total_num_requests: float
    aggregated_metrics: Mapping[str, Mapping[Any, float]]
    config: Any


class QueueWait:
    """Asks for enough replicas to bring the predicted wait of each to `target_wait` seconds.

    It also counts requests, as Ray's own policy does (`target_ongoing_requests`): running requests
    keep their replicas even when none wait. Requests alone are not enough, because one may have a
    single text or 2,048. The larger number wins. Ray applies the bounds, delays and factors of
    `autoscaling_config`.
    """

    def __init__(self, target_wait: float = 0.5) -> None:
        if target_wait <= 0:
            raise ValueError(f"target_wait = {target_wait}; must be above 0 seconds")
        self._target_wait = target_wait

    def __call__(self, context: Context) -> tuple[float, dict[str, Any]]:
        """Return the wanted number of replicas, and an empty state."""
        waits = context.aggregated_metrics.get(PREDICTED_WAIT, {})
        by_wait = sum(waits.values()) / self._target_wait
        by_requests = context.total_num_requests / context.config.get_target_ongoing_requests()
        return max(by_wait, by_requests), {}
