"""Spans reach a collector over HTTP; a collector that is slow, wrong or away costs nobody else anything."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import trustme

from gateway.core.otel import Tracing
from gateway.core.traces import Span, SpanKind
from gateway.errors import StartError
from gateway.telemetry.traces import Exporter, encoded_span
from tests.traces.collector import Collector, collecting
from tests.waiting import wait_until

SPAN = encoded_span(bytes(15) + b"t", Span("s", SpanKind.INTERNAL, b"12345678", b"", 1.0, 2.0), 0.0)


class ExporterEvents:
    """What the exporter said."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, event: str, /, **_: object) -> None:
        self.events.append(event)


@contextmanager
def exporting(collector: Collector | str, **settings: object) -> Iterator[tuple[Exporter, ExporterEvents]]:
    url = collector if isinstance(collector, str) else f"{collector.url}/v1/traces"
    tracing = msgspec.structs.replace(Tracing(endpoint=url, delay_s=0.01), **settings)
    told = ExporterEvents()
    exporter = Exporter(tracing, "1.0", told, first_pause_s=0.01)
    exporter.start()
    try:
        yield exporter, told
    finally:
        exporter.stop()


@pytest.mark.parametrize("is_compressed", [False, True])
def test_spans_arrive_with_headers_and_resource(is_compressed: bool) -> None:
    resource = (("service.name", "toll"), ("deployment.environment.name", "test"))
    with (
        collecting() as collector,
        exporting(collector, headers=(("x-team", "a=b"),), resource=resource, gzip=is_compressed) as (
            exporter,
            _,
        ),
    ):
        exporter.offer([SPAN, SPAN])
        spans = collector.until(2)
        wait_until(lambda: exporter.sent == 2)
        post = collector.posts[0]
        assert [span.name for span in spans] == ["s", "s"]
        assert post.path == "/v1/traces"
        assert post.fields["content-type"] == "application/x-protobuf"
        assert post.fields["x-team"] == "a=b"
        assert post.fields.get("content-encoding") == ("gzip" if is_compressed else None)
        assert collector.resource()["deployment.environment.name"] == "test"
        assert collector.resource()["service.name"] == "toll"
        assert collector.resource()["telemetry.sdk.language"] == "python"
        assert exporter.snapshot() == {"spans": [["sent", 2], ["dropped", 0]]}


def test_what_waits_at_the_end_is_sent() -> None:
    with collecting() as collector:
        with exporting(collector, delay_s=600.0) as (exporter, _):
            exporter.offer([SPAN])
        assert (len(collector.spans()), exporter.sent) == (1, 1)


def test_a_full_batch_does_not_wait_and_keeps_to_its_size() -> None:
    with collecting() as collector, exporting(collector, delay_s=600.0, batch_spans_max=4) as (exporter, _):
        for _ in range(5):
            exporter.offer([SPAN, SPAN])
        collector.until(8)
        assert all(len(post.content.resource_spans[0].scope_spans[0].spans) <= 4 for post in collector.posts)


def test_a_full_queue_drops_and_counts() -> None:
    with collecting() as collector:
        collector.hold.clear()
        with exporting(collector, queue_spans_max=4, batch_spans_max=2) as (exporter, _):
            exporter.offer([SPAN] * 2)
            wait_until(lambda: not exporter._waiting)  # in the hands of the collector that holds it
            for _ in range(5):
                exporter.offer([SPAN] * 2)
            assert exporter.dropped == 6
            collector.hold.set()
            collector.until(6)
        assert (exporter.sent, exporter.dropped) == (6, 6)


@pytest.mark.parametrize("status", [429, 503])
def test_a_collector_that_is_busy_is_asked_again(status: int) -> None:
    with collecting() as collector, exporting(collector) as (exporter, told):
        collector.statuses = [status, status]
        exporter.offer([SPAN])
        collector.until(1)
        wait_until(lambda: told.events == ["traces are not collected", "traces are collected again"])
        assert exporter.dropped == 0


def test_what_a_collector_refuses_is_dropped_at_once() -> None:
    with collecting() as collector, exporting(collector) as (exporter, told):
        collector.statuses = [400]
        exporter.offer([SPAN])
        wait_until(lambda: exporter.dropped == 1)
        exporter.offer([SPAN])
        wait_until(lambda: exporter.sent == 1)
        assert told.events == ["traces are not collected", "traces are collected again"]


def test_a_collector_that_is_away_is_said_once_and_costs_the_batch() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with exporting(f"http://127.0.0.1:{port}/v1/traces", timeout_s=0.05) as (exporter, told):
        for dropped in (1, 2):
            exporter.offer([SPAN])
            wait_until(lambda wanted=dropped: exporter.dropped == wanted)  # type: ignore[misc]  # a default binds the loop's value
        assert told.events == ["traces are not collected"]


def test_a_kept_connection_that_was_closed_is_opened_anew() -> None:
    with collecting() as collector, exporting(collector) as (exporter, told):
        exporter.offer([SPAN])
        wait_until(lambda: exporter.sent == 1)
        assert exporter._connection is not None
        assert exporter._connection.sock is not None
        exporter._connection.sock.shutdown(socket.SHUT_RDWR)
        exporter.offer([SPAN])
        wait_until(lambda: exporter.sent == 2)
        assert told.events == []


def test_a_collector_over_tls_is_verified(tmp_path: Path) -> None:
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    with collecting(tls) as collector:
        url = f"https://127.0.0.1:{collector.port}/v1/traces"
        with exporting(url, ca_file=str(ca_file)) as (exporter, _):
            exporter.offer([SPAN])
            collector.until(1)
        with exporting(url, timeout_s=0.05) as (stranger, told):
            stranger.offer([SPAN])
            wait_until(lambda: stranger.dropped == 1)
        assert told.events == ["traces are not collected"]
        assert len(collector.spans()) == 1


def test_another_authority_is_believed_by_the_next_connection(tmp_path: Path) -> None:
    """A file that is no authority keeps the one before, and is told once."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    ca_file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    with collecting(tls) as collector:
        url = f"https://127.0.0.1:{collector.port}/v1/traces"
        with exporting(url, ca_file=str(ca_file), timeout_s=0.05) as (exporter, told):
            exporter.offer([SPAN])
            wait_until(lambda: exporter.dropped == 1)
            authority.cert_pem.write_to_path(str(ca_file))
            exporter._tracing = msgspec.structs.replace(exporter._tracing, timeout_s=10.0)
            exporter.offer([SPAN])
            collector.until(1)
            wait_until(lambda: exporter.sent == 1)
            ca_file.write_text("nothing")
            for count in (2, 3):
                exporter._disconnect()
                exporter.offer([SPAN])
                wait_until(lambda: exporter.sent == count)  # noqa: B023  # waited for here
        kept = "certificates for traces are kept as they were"
        assert told.events == ["traces are not collected", "traces are collected again", kept]


def test_certificates_that_cannot_be_used_stop_the_start(tmp_path: Path) -> None:
    tracing = Tracing(endpoint="https://127.0.0.1/v1/traces", ca_file=str(tmp_path / "none.pem"))
    with pytest.raises(StartError, match="certificates for sending traces"):
        Exporter(tracing, "1.0", ExporterEvents())
