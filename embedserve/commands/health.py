"""embedserve health: whether the server of these settings is ready."""

from __future__ import annotations

import sys

from embedserve.commands.context import Command, context
from embedserve.errors import Exit, StartupError
from embedserve.escapes import escaped

# Who listens on every address is asked on loopback.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared with, not bound to


def run(
    models: str | None, artifacts: str | None, model: list[str], seconds: float, **flags: str | None
) -> int:
    """Ask the server of these settings whether it is ready: 0, or 1 with the reason."""
    _, settings, _ = context(models, artifacts, flags)
    ready, said = ask(settings.host, settings.port, seconds)
    print(escaped(said), file=sys.stdout if ready else sys.stderr)
    return 0 if ready else 1


def ask(host: str, port: int, seconds: float) -> tuple[bool, str]:
    """Return whether /readyz answers 200 in time, and what it said or why it did not.

    No proxy of the environment is asked, and no API key is needed. StartupError for port 0 and for
    a time that is none.
    """
    if not 0 < seconds <= 3600:
        raise StartupError(f"--seconds = {seconds:g}; more than 0, at most 3600", Exit.USAGE)
    if port == 0:
        raise StartupError(
            "port = 0 takes any free port; name the taken one with --port", Exit.USAGE
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
        "--seconds": {"type": float, "default": 5.0, "help": "time to answer; default: 5"},
    },
)
