"""An OTLP/HTTP collector that keeps what it gets: python -m tests.otel.collector FILE

Prints its port. Each span it gets is one line of JSON in FILE; what came as bytes, before anything
was decoded, is beside it in FILE.raw.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PROTOBUF = "application/x-protobuf"


def flat(request: Any) -> Iterator[dict[str, Any]]:
    """Each span of an export request, with its resource and the name of its scope."""
    for of_resource in request.resource_spans:
        resource = values(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield {
                    "name": span.name,
                    "kind": type(span).SpanKind.Name(span.kind),
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "start": span.start_time_unix_nano,
                    "end": span.end_time_unix_nano,
                    "status": type(span.status).StatusCode.Name(span.status.code),
                    "attributes": values(span.attributes),
                    "events": [event.name for event in span.events],
                    "scope": of_scope.scope.name,
                    "resource": resource,
                }


def values(attributes: Iterable[Any]) -> dict[str, Any]:
    """Attributes as a dictionary."""
    return {attribute.key: plain(attribute.value) for attribute in attributes}


def plain(value: Any) -> Any:
    """An attribute's value; a list's values are of one type each."""
    kind = value.WhichOneof("value")
    return (
        [plain(v) for v in value.array_value.values]
        if kind == "array_value"
        else getattr(value, kind)
    )


class Collector(ThreadingHTTPServer):
    """Appends to two files."""

    def __init__(self, path: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self._path = path
        self._lock = threading.Lock()

    def keep(self, body: bytes) -> None:
        """Append the bytes, then the spans in them."""
        lines = [
            json.dumps(span) + "\n" for span in flat(ExportTraceServiceRequest.FromString(body))
        ]
        with self._lock:
            with self._path.with_suffix(".raw").open("ab") as raw:
                raw.write(body)
            with self._path.open("a") as spans:
                spans.writelines(lines)


class Handler(BaseHTTPRequestHandler):
    """POST /v1/traces, as OTLP 1.0 has it."""

    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        assert (self.path, self.headers["content-type"]) == ("/v1/traces", PROTOBUF)
        self.server.keep(self.rfile.read(int(self.headers["content-length"])))
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", PROTOBUF)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """What it gets stands in the files."""


def main(path: str) -> None:
    """Serve until terminated."""
    Path(path).touch()
    with Collector(Path(path)) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
