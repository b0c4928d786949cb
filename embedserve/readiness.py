"""Whether this process is alive and should get traffic, with the reason when not."""

from __future__ import annotations

from collections.abc import Callable

from embedserve.errors import RequestError

# A pass that was asked to end stops after the operator it is in: within a second.
LOST_SECONDS = 30.0


class Readiness:
    """What the probes say. Owned by the event loop; `drain` may be called by a signal's handler."""

    def __init__(self) -> None:
        self.draining = False
        self.longest_stop: Callable[[], float] = lambda: 0.0

    def drain(self) -> None:
        """From now on no traffic should come: every answer closes its connection."""
        self.draining = True

    def is_live(self) -> bool:
        """Whether every lane comes back: otherwise only a new process has all lanes again."""
        return self.longest_stop() <= LOST_SECONDS

    def is_ready(self) -> bool:
        """Whether new traffic should come."""
        return self.is_live() and not self.draining

    def check_live(self) -> None:
        """503 when a lane does not come back."""
        if not self.is_live():
            message = f"an inference thread has not come back for {self.longest_stop():.0f} s"
            raise RequestError("not_ready", message, headers={"Retry-After": "30"})

    def check_ready(self) -> None:
        """503 with the reason when no new traffic should come."""
        if self.draining:
            message = "the server is shutting down"
            raise RequestError("not_ready", message, headers={"Retry-After": "1"})
        self.check_live()
