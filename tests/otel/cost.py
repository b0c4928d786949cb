"""What tracing costs: .venv-dev/bin/python -m tests.otel.cost

Processor time of the server of .venv-otel per request of one text at 32 clients, on a tiny model:
with tracing off, with one request in twenty recorded, and with all of them; in turns in one run.
The collector takes what it gets and drops it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

from tests import tiny
from tests.bench.http_overhead import CLIENTS, ONE, per_request
from tests.conftest import environment
from tests.otel.conftest import PROGRAM

COUNT, ROUNDS = 4000, 9
KINDS: dict[str, dict[str, str]] = {
    "off": {},
    "one in twenty": {
        "EMBEDSERVE_TRACING": "true",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.05",
    },
    "all": {"EMBEDSERVE_TRACING": "true"},
}


class Sink(BaseHTTPRequestHandler):
    """A collector that drops what it gets."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving(root: Path, endpoint: str, env: dict[str, str]) -> Iterator[tuple[int, int]]:
    """A running server: its port and pid."""
    paths = ("--models", root / "models.toml", "--artifacts", root / "artifacts")
    with subprocess.Popen(
        [PROGRAM, "serve", "--port", "0", "--no-access-log", *paths],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **env),
    ) as process:
        assert process.stderr is not None
        try:
            port = next(
                int(p[1]) for s in process.stderr if (p := re.search(r"on http.*:(\d+)", s))
            )
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield port, process.pid
        finally:
            process.kill()


def main() -> None:
    """Measure in turns, print medians and what each adds to "off", round by round."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tiny.write(root / "artifacts" / "tiny")
        tiny.models_toml(root / "models.toml", {"tiny": ""})
        sink = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Sink))
        threading.Thread(target=sink.serve_forever, daemon=True).start()
        stack.callback(sink.shutdown)
        endpoint = f"http://127.0.0.1:{sink.server_port}"
        servers = {
            kind: stack.enter_context(serving(root, endpoint, env)) for kind, env in KINDS.items()
        }
        for server in servers.values():
            per_request(*server, ONE, CLIENTS, 1000)
        rounds = [
            {k: per_request(*s, ONE, CLIENTS, COUNT).seconds for k, s in servers.items()}
            for _ in range(ROUNDS)
        ]
    for kind in KINDS:
        own = median(r[kind] for r in rounds) * 1e6
        more = median(r[kind] - r["off"] for r in rounds) * 1e6
        print(f"{kind}: {own:.0f} us a request, {more:.0f} us more than off")


if __name__ == "__main__":
    main()
