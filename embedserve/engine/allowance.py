"""How much of a kind of work the event loop may do itself: Allowance; pure, has no clock."""

from __future__ import annotations

# At most this many seconds at once, and this share of the time in the long run; short English texts
# take a tenth of it. Without a limit, 300 simultaneous requests with the 500 most expensive
# characters would take 1.5 s.
_BURST, _PART = 0.02, 0.5


class Allowance:
    """Seconds that were spent lately. Owned by the event loop; `now` never goes back."""

    def __init__(self) -> None:
        self._spent = self._at = 0.0

    def is_left(self, now: float) -> bool:
        """Whether more may be spent now."""
        self._spent = max(0.0, self._spent - _PART * (now - self._at))
        self._at = now
        return self._spent < _BURST

    def spend(self, seconds: float) -> None:
        """Count what was done."""
        self._spent += seconds
