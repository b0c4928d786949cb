"""embedserve serve: load models, verify them, serve."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedserve import logs
from embedserve.commands.context import Command, context
from embedserve.config.api_keys import Keys, take_from_environment, to_hand_over
from embedserve.config.settings import Settings
from embedserve.processes import VARIABLE
from embedserve.system import host

if TYPE_CHECKING:
    from embedserve.processes.member import Member

log = logging.getLogger(__name__)


def run(models: str | None, artifacts: str | None, model: list[str], **flags: str | None) -> int:
    """Load models, verify them, and serve them."""
    # Process 1 of a container ignores signals without a handler; once it serves, it drains. Until
    # then there is nothing to finish, and an exception could not leave a library's import.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from_environment = take_from_environment()
    configuration, settings, paths = context(models, artifacts, flags)
    logs.configure(settings)
    member = _member()
    if settings.processes > 1 and member is None:
        from embedserve.processes import parent

        return parent.run(settings, to_hand_over(from_environment))
    keys = Keys(Path(settings.api_keys_file) if settings.api_keys_file else None, from_environment)
    if settings.api_keys_file:
        # Set before the loop runs, because SIGHUP without a handler ends a process.
        signal.signal(signal.SIGHUP, lambda *_: keys.reload())
    # Imported here, so that a wrong flag and --version need neither numpy nor onnxruntime.
    from embedserve.http.listener import bind, is_loopback
    from embedserve.model import loading, providers
    from embedserve.model.providers import PROVIDERS

    listener = member.listener if member else bind(settings)
    traced = _tracing(settings)
    specs = loading.choose(configuration.models, model, paths["artifacts"], settings.skip_missing)
    aliases = [a for a in configuration.aliases.values() if not model or a.model in model]
    found = host.read()
    cores = found.cores.value
    lanes = providers.lanes(settings, cores)
    if member is not None:
        cores, lanes = member.share(cores), member.share(lanes)
    with ThreadPoolExecutor(1, "loader") as loader:
        work = (specs, aliases, paths["artifacts"], settings.provider, cores)
        loading_models = loader.submit(loading.load, *work)
        # These imports take 0.2 s, which loading does not use the interpreter for.
        from embedserve.api.app import create_app
        from embedserve.diagnose import footprint
        from embedserve.engine.lanes import RENDERER, THREADS, TOKENIZER
        from embedserve.http import server
        from embedserve.http.readiness import Readiness
        from embedserve.metrics import Metrics

        loaded = loading_models.result()
    tokens = providers.tokens_per_pass(settings)
    manifests = [model.manifest for model in loaded]
    memory = footprint.estimate(
        host.resident(),
        manifests,
        lanes,
        tokens,
        settings,
        takes_ids=loaded.takes_ids,
        on_device=PROVIDERS[settings.provider].device is not None,
        step_characters=max(model.tokenizer.step_characters for model in loaded),
    )
    log.info("%s", memory)
    if advice := memory.advice(found.memory):
        log.warning("%s", advice)
    if not keys and not is_loopback(settings.host):
        log.warning(
            "ANYONE WHO REACHES %s:%s CAN USE THIS SERVER: it listens on a public address and no "
            "API keys are set (api_keys_file, or EMBEDSERVE_API_KEYS)",
            settings.host,
            listener.getsockname()[1],
        )
    log.info(
        "serving %s on http://%s:%s with %s lanes",
        ", ".join(loaded.names()),
        settings.host,
        listener.getsockname()[1],
        lanes,
    )
    readiness, metrics = Readiness(), Metrics()
    metrics.fix("memory_bound_bytes", memory.most)
    metrics.fix("memory_limit_bytes", found.memory.value if found.memory else math.inf)
    app = traced(create_app(settings, loaded, lanes, keys, readiness, metrics, member))
    server.run(app, settings, listener, readiness, metrics)
    if any(t.name.startswith((THREADS, TOKENIZER, RENDERER)) for t in threading.enumerate()):
        # A lane still runs a pass, and onnxruntime's destructors would abort under it. Or a thread
        # still tokenizes a long text, which nothing can stop. Do not wait for either.
        logging.shutdown()
        os._exit(0)
    return 0


def _member() -> Member | None:
    """Return what the parent of several processes handed over; None: there is none."""
    if VARIABLE not in os.environ:
        return None
    from embedserve.processes import member

    return member.take_from_environment()


def _tracing(settings: Settings) -> Callable[[Any], Any]:
    """Return what adds spans to an application; without `tracing`, it adds and imports nothing."""
    if not settings.tracing:
        return lambda app: app
    from embedserve.api import tracing

    return partial(tracing.Traced, tracing.provider(), settings.drain_seconds)


COMMAND = Command(run)
