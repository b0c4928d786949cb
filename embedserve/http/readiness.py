"""Whether this process is alive and should get traffic, with the reason when not."""

from __future__ import annotations

from collections.abc import Callable

from embedserve.errors import RequestError

# A pass that was asked to end stops after the operator it is in: within a second.
LOST_SECONDS = 30.0
DEVICE_LOST = "the GPU fails at every pass: this process must be started again"


class Readiness:
    """What the probes say. Owned by the event loop; `drain` may be called by a signal's handler."""

    def __init__(self) -> None:
        self.draining = False
        self.longest_stop: Callable[[], float] = lambda: 0.0
        self.is_device_lost: Callable[[], bool] = lambda: False

    def drain(self) -> None:
        """From now on no traffic should come: every answer closes its connection."""
        self.draining = True

    def is_live(self) -> bool:
        """Whether every lane comes back, and the device computes: else only a new process helps."""
        return self.longest_stop() <= LOST_SECONDS and not self.is_device_lost()

    def is_ready(self) -> bool:
        """Whether new traffic should come."""
        return self.is_live() and not self.draining

    def check_live(self) -> None:
        """503 when a lane does not come back, or its device computes no more."""
        if self.is_device_lost():
            raise RequestError("not_ready", DEVICE_LOST, headers={"Retry-After": "30"})
        if not self.is_live():
            message = f"an inference thread has not come back for {self.longest_stop():.0f} s"
            raise RequestError("not_ready", message, headers={"Retry-After": "30"})

    def check_ready(self) -> None:
        """503 with the reason when no new traffic should come."""
        if self.draining:
            message = "the server is shutting down"
            raise RequestError("not_ready", message, headers={"Retry-After": "1"})
        self.check_live()
