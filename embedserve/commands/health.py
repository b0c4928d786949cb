"""embedserve health: asks whether the server with these settings is ready."""

from __future__ import annotations

import sys

from embedserve.commands.context import Command, context
from embedserve.errors import Exit, StartupError
from embedserve.escapes import escaped

# Probe a wildcard bind through loopback.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared with, not bound to


def run(
    models: str | None, artifacts: str | None, model: list[str], seconds: float, **flags: str | None
) -> int:
    """Ask whether the server with these settings is ready: exit with 0, or 1 and the reason."""
    _, settings, _ = context(models, artifacts, flags)
    ready, said = ask(settings.host, settings.port, seconds)
    print(escaped(said), file=sys.stdout if ready else sys.stderr)
    return 0 if ready else 1


def ask(host: str, port: int, seconds: float) -> tuple[bool, str]:
    """Return whether /readyz answers 200 in time, and what it said or why it did not.

    Ignores proxies in the environment and needs no API key. StartupError for port 0, and unless
    0 < seconds <= 3600.
    """
    if not 0 < seconds <= 3600:
        raise StartupError(f"--seconds = {seconds:g}; more than 0, at most 3600", Exit.USAGE)
    if port == 0:
        raise StartupError(
            "port = 0 means any free port; give the server's port with --port", Exit.USAGE
        )
    # Imported here: it takes 41 ms, and every other command's start would pay for it.
    import http.client

    address = _LOOPBACK.get(host, host)
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.request("GET", "/readyz", headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status == 200, answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return False, f"{address}:{port}: {error or type(error).__name__}"
    finally:
        connection.close()


COMMAND = Command(
    run,
    ("host", "port"),
    {
        "--seconds": {
            "type": float,
            "default": 5.0,
            "help": "seconds to wait for an answer",
        },
    },
)
