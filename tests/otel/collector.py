"""An OTLP/HTTP collector that keeps what it gets: python -m tests.otel.collector FILE

Prints its port. Each span it gets is one line of JSON in FILE; what came as bytes, before anything
was decoded, is beside it in FILE.raw.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


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
    """Attributes as a dictionary; each has a value of one type."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def main(path: str) -> None:
    """Serve until terminated."""
    spans, raw = Path(path).open("a"), Path(path + ".raw").open("ab")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == "/v1/traces", self.path
            assert self.headers["content-type"] == "application/x-protobuf"
            body = self.rfile.read(int(self.headers["content-length"]))
            for file, content in ((raw.buffer if hasattr(raw, "buffer") else raw, body),):
                file.write(content)
                file.flush()
            for span in flat(ExportTraceServiceRequest.FromString(body)):
                spans.write(json.dumps(span) + "\n")
            spans.flush()
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """What it gets stands in the file."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
