"""A collector of traces as any other: OTLP over HTTP, read by OpenTelemetry's own messages."""

from __future__ import annotations

import gzip
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.waiting import wait_until


@dataclass(frozen=True)
class Post:
    """One request as it came."""

    path: str
    fields: dict[str, str]
    content: ExportTraceServiceRequest


class Collector:
    """What came, and the statuses that the next requests get: 200 where there are none left."""

    def __init__(self) -> None:
        self.posts: list[Post] = []
        self.statuses: list[int] = []
        self.hold = threading.Event()
        self.hold.set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spans(self) -> list[Span]:
        """All spans of the requests that were taken."""
        return [
            span
            for post in self.posts
            for resource in post.content.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resource(self) -> dict[str, object]:
        return attributes(self.posts[0].content.resource_spans[0].resource.attributes)

    def until(self, count: int) -> list[Span]:
        """Wait for so many spans."""
        wait_until(lambda: len(self.spans()) >= count)
        return self.spans()


@contextmanager
def collecting(tls: ssl.SSLContext | None = None) -> Iterator[Collector]:
    """Listen on a port of its own."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.hold.wait(30)
            status = collector.statuses.pop(0) if collector.statuses else 200
            if status == 200:
                if self.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                content = ExportTraceServiceRequest.FromString(body)
                fields = {name.lower(): value for name, value in self.headers.items()}
                collector.posts.append(Post(self.path, fields, content))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    collector.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


def attributes(pairs: Iterable[KeyValue]) -> dict[str, object]:
    """Attributes by their names, values as Python has them."""
    found: dict[str, object] = {}
    for pair in pairs:
        found[pair.key] = getattr(pair.value, pair.value.WhichOneof("value") or "string_value")
    return found
