"""A second build of the same source on the same base is the same image."""

from __future__ import annotations

from tests.image.containers import runner
from tests.image.environment import AGAIN, IMAGE


def test_same_layers() -> None:
    """Every file, with its bytes, mode, owner and time: layers are named by the digest of those."""
    engine = runner()
    first, second = engine.inspect(IMAGE), engine.inspect(AGAIN)
    assert first.layers
    assert first == second
