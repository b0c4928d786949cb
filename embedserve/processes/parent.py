"""The parent of several serving processes: `embedserve serve --processes N`."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from embedserve.config.settings import Settings
from embedserve.engine.allowance import Allowance
from embedserve.errors import Exit, StartupError
from embedserve.http import listener
from embedserve.merged_metrics import merge
from embedserve.metrics import ParentMetrics
from embedserve.processes.worker import Worker
from embedserve.system import host
from embedserve.system.host import Known

log = logging.getLogger(__name__)

# Names each process's series in the metrics of all.
LABEL = "process"
PARENT = "parent"


def run(settings: Settings, keys: Mapping[str, str]) -> int:
    """Serve with `settings.processes` processes until a signal; return the exit status.

    `keys`: the environment that hands the API keys to each of them. StartupError when there are
    more processes than cores, or the address is in use.
    """
    check(settings, host.read().cores)
    return asyncio.run(Parent(settings, keys).run())


def check(settings: Settings, cores: Known[int]) -> None:
    """StartupError when there are more processes than cores."""
    if settings.processes > cores.value:
        raise StartupError(
            f"processes = {settings.processes}: more than the {cores.value} cores that this "
            f"process may use ({cores.origin}); 1 to {cores.value}",
            Exit.CONFIG,
        )


class Parent:
    """Starts the processes, and ends them. Owned by the event loop.

    The first loads alone, so that an error of the start is logged once, and nothing else starts.
    """

    def __init__(self, settings: Settings, keys: Mapping[str, str]) -> None:
        self._settings = settings
        with listener.bind(settings) as probe:  # StartupError where another has the address
            self._port = probe.getsockname()[1]
        self._metrics = ParentMetrics(self._serving)
        self._workers = [
            Worker(number, settings.processes, self, keys, self._metrics.restarts.inc)
            for number in range(settings.processes)
        ]
        self._ending = False
        self._fingerprints: Mapping[str, str] = {}
        self._merging: asyncio.Task[bytes] | None = None
        self._merges = Allowance()

    async def run(self) -> int:
        """Serve until a signal, or until a process ends before it has ever served."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        if self._settings.api_keys_file:
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        first, *others = self._workers
        runs = {asyncio.create_task(first.run())}
        announced = asyncio.create_task(self._announced())
        if await _is_first(first.serves.wait(), *runs):
            runs |= {asyncio.create_task(worker.run()) for worker in others}
        done, left = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
        announced.cancel()
        if not self._ending:
            self._end(signal.SIGTERM)
        if left:
            await asyncio.wait(left)
        return next((status for task in done if (status := task.result())), 0)

    async def _announced(self) -> None:
        """Say that all serve, and what they take at most."""
        await asyncio.gather(*(worker.serves.wait() for worker in self._workers))
        most = host.resident() + sum(worker.memory_bound for worker in self._workers)
        log.info("%s processes serve; memory: at most %.0f MB", len(self._workers), most / 1e6)
        memory = host.read().memory
        if memory is not None and most > memory.value:
            log.warning(
                "that may exceed the %.0f MB available (%s): each process has max_connections, "
                "max_pending_mb, max_body_bytes and cache_mb for itself; lower them",
                memory.value / 1e6,
                memory.origin,
            )

    def bind(self, *, listens: bool) -> socket.socket:
        """A socket on the port that all share."""
        return listener.bind(self._settings, self._port, shared=True, listens=listens)

    def accepts(self, fingerprints: Mapping[str, str]) -> bool:
        """Whether these are the models that the first process serves: they may have changed."""
        self._fingerprints = self._fingerprints or fingerprints
        return fingerprints == self._fingerprints

    async def merged(self) -> bytes:
        """The metrics of all, gathered once for those who ask meanwhile, and not without pause."""
        found = self._merging
        if found is None or (found.done() and self._merges.is_left(time.perf_counter())):
            found = self._merging = asyncio.create_task(self._gathered())
        return await asyncio.shield(found)

    def _end(self, number: int) -> None:
        self._ending = True
        for worker in self._workers:
            worker.end(number)

    def _reload(self) -> None:
        for worker in self._workers:
            worker.reload()

    def _serving(self) -> int:
        return sum(worker.serves.is_set() for worker in self._workers)

    async def _gathered(self) -> bytes:
        found = await asyncio.gather(*(worker.metrics() for worker in self._workers))
        texts = {str(i + 1): text for i, text in enumerate(found) if text is not None}
        texts[PARENT] = self._metrics.render()
        start = time.perf_counter()
        merged = await asyncio.to_thread(merge, texts, LABEL)
        self._merges.spend(time.perf_counter() - start)
        return merged


async def _is_first(event: Coroutine[Any, Any, object], *others: asyncio.Task[Any]) -> bool:
    """Wait for an event or the end of a task; whether the event came first."""
    waiting = asyncio.create_task(event)
    await asyncio.wait({waiting, *others}, return_when=asyncio.FIRST_COMPLETED)
    has_come = waiting.done()
    waiting.cancel()
    return has_come
