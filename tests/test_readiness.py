"""What the probes say, and why."""

from __future__ import annotations

import pytest

from embedserve.errors import RequestError
from embedserve.http.readiness import LOST_SECONDS, Readiness


def refusal(readiness: Readiness) -> str:
    """What both probes say when only a new process helps."""
    for check in (readiness.check_live, readiness.check_ready):
        with pytest.raises(RequestError) as caught:
            check()
        assert (caught.value.status, caught.value.code) == (503, "not_ready")
    assert not readiness.is_live()
    assert not readiness.is_ready()
    return caught.value.message


def test_a_lane_that_does_not_come_back() -> None:
    """It is given half a minute."""
    readiness = Readiness()
    readiness.longest_stop = lambda: LOST_SECONDS
    readiness.check_ready()
    readiness.longest_stop = lambda: LOST_SECONDS + 1
    assert "has not come back for 31 s" in refusal(readiness)


def test_a_lost_device() -> None:
    """At once: nothing that it is asked can succeed."""
    readiness = Readiness()
    readiness.check_ready()
    readiness.is_device_lost = lambda: True
    assert "the GPU fails at every pass" in refusal(readiness)
