"""What happens to a test whose program is not installed."""

from __future__ import annotations

import pytest

from tests import programs


def test_a_missing_program_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's machine need not have all of Debian's packages."""
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install thing"):
        programs.need("no-such-program", package="thing")


def test_ci_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CI=true it fails."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install thing"):
        programs.need("no-such-program", package="thing")
