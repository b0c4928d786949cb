"""Cancellation: a client that left or is late is answered at once, and nothing runs for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedserve.engine.cancellation import Cancellation
from embedserve.errors import ClientLeftError, RequestError

pytestmark = pytest.mark.anyio


@pytest.fixture
def busy() -> Iterator[tuple[ThreadPoolExecutor, Callable[[], None]]]:
    """A thread that is busy until told otherwise."""
    gate = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(gate.wait)
        yield executor, gate.set
        gate.set()


async def ending(
    executor: ThreadPoolExecutor, ran: list[str], left: asyncio.Event, deadline: float
) -> None:
    """A request whose work waits for the thread."""

    async def gone() -> None:
        await left.wait()

    loop = asyncio.get_running_loop()
    cancellation = Cancellation(asyncio.ensure_future(gone()), loop.time() + deadline)
    try:
        await cancellation.wait(loop.run_in_executor(executor, ran.append, "work"))
    finally:
        cancellation.end()


@pytest.mark.parametrize("how", ["leaves", "is late", "is cancelled"])
async def test_what_waits_for_nobody_never_runs(
    busy: tuple[ThreadPoolExecutor, Callable[[], None]], how: str
) -> None:
    """It ends at once, while the thread is busy with others, and its work is not done later."""
    executor, release = busy
    ran: list[str] = []

    left = asyncio.Event()
    deadline = 0.0 if how == "is late" else 60.0
    request = asyncio.create_task(ending(executor, ran, left, deadline))
    await asyncio.sleep(0)
    if how == "leaves":
        left.set()
    elif how == "is cancelled":
        request.cancel()
    await asyncio.wait((request,), timeout=30)
    assert request.done()
    if how == "is cancelled":
        assert request.cancelled()
    else:
        error = request.exception()
        expected = ClientLeftError if how == "leaves" else RequestError
        assert isinstance(error, expected)
    release()
    await asyncio.get_running_loop().run_in_executor(executor, ran.append, "next")
    assert ran == ["next"]


async def test_work_that_is_done_is_given(
    busy: tuple[ThreadPoolExecutor, Callable[[], None]],
) -> None:
    """Its result, or its own error."""
    executor, release = busy
    release()

    loop = asyncio.get_running_loop()
    cancellation = Cancellation(loop.create_future(), loop.time() + 60)  # it never comes
    assert await cancellation.wait(loop.run_in_executor(executor, int, "7")) == 7
    with pytest.raises(ValueError, match="seven"):
        await cancellation.wait(loop.run_in_executor(executor, int, "seven"))
    cancellation.end()
