"""Traces: a thread sends encoded spans to a collector over OTLP/HTTP; a request never waits for it.

The queue is bounded: spans that do not fit, or that the collector does not accept in time, are dropped and
counted. Requests are repeated after the statuses that the protocol names, and after failed connections (OTLP
specification, "OTLP/HTTP Response" and "OTLP/HTTP Throttling").
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from random import random
from struct import pack
from urllib.parse import urlsplit

from gateway.core.otel import Tracing
from gateway.core.traces import IDS_BYTES, SAMPLED, Parent, Span, Trace, Value, begin_trace
from gateway.errors import StartError
from gateway.files import require_regular

# Encoding of spans for OTLP in Protocol Buffers; nothing is sent here.
#
# Source: opentelemetry-proto 1.x, `trace/v1/trace.proto` and its imports. Written by hand, because these
# are four messages, and the official library costs more time than the traced request
# (docs/internals/figures.md has the figures).

_STATUS_ERROR = b"\x7a\x02\x18\x02"  # field 15: a Status whose field 3, the code, is ERROR
_REMOTE_PARENT = 0x300  # flags: it is known that the parent is remote
_LOCAL_PARENT = 0x100
# Of the semantic conventions that have all names of attributes here.
SCHEMA_URL = b"https://opentelemetry.io/schemas/1.44.0"


def encoded_span(
    trace_id: bytes, span: Span, ahead_s: float, *, remote_parent: bool = False, state: str = ""
) -> bytes:
    """Return a span encoded as a field of OpenTelemetry's `ScopeSpans`.

    `ahead_s` is Unix time less the clock of the span's times. `state` is the `tracestate` of the trace. With
    `remote_parent`, the parent span is another program's.
    """
    attributes = dict(span.attributes)
    if span.error:
        attributes["error.type"] = span.error
    name = span.name.encode("utf-8", "replace")
    content = b"".join((
        b"\x0a\x10", trace_id,
        b"\x12\x08", span.span_id,
        _block(b"\x1a", state.encode("ascii")) if state else b"",
        b"\x22\x08" + span.parent_id if span.parent_id else b"",
        b"\x2a", varint(len(name)), name,
        b"\x30", varint(span.kind),
        pack("<BQBQ", 0x39, _nanoseconds(span.started, ahead_s), 0x41, _nanoseconds(span.ended, ahead_s)),
        *[_block(b"\x4a", _encode_pair(key, value)) for key, value in attributes.items()],
        _STATUS_ERROR if span.error else b"",
        pack("<HI", 0x0185, SAMPLED | (_REMOTE_PARENT if remote_parent else _LOCAL_PARENT)),
    ))  # fmt: skip
    return _block(b"\x12", content)


def encoded_resource(attributes: Mapping[str, Value]) -> bytes:
    """Return the resource of the spans, encoded as a field of `ResourceSpans`."""
    return _block(
        b"\x0a", b"".join(_block(b"\x0a", _encode_pair(key, value)) for key, value in attributes.items())
    )


def encoded_request(resource: bytes, scope: str, version: str, spans: Iterable[bytes]) -> bytes:
    """Return an `ExportTraceServiceRequest` of encoded spans under one encoded resource."""
    named = _block(b"\x0a", scope.encode()) + _block(b"\x12", version.encode())
    schema = _block(b"\x1a", SCHEMA_URL)
    of_scope = _block(b"\x12", _block(b"\x0a", named) + b"".join(spans) + schema)
    return _block(b"\x0a", resource + of_scope + schema)


def _encode_pair(key: str, value: Value) -> bytes:
    """Return an attribute as a `KeyValue` of OTLP."""
    if isinstance(value, bool):
        told = b"\x10\x01" if value else b"\x10\x00"
    elif isinstance(value, int):
        told = b"\x18" + varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    elif isinstance(value, float):
        told = pack("<Bd", 0x21, value)
    else:
        told = _block(b"\x0a", value.encode("utf-8", "replace"))
    return _block(b"\x0a", key.encode()) + _block(b"\x12", told)


def _block(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


def varint(number: int) -> bytes:
    """Return a number encoded as a varint of Protocol Buffers: the lowest seven bits first."""
    if number < 0x80:
        return bytes((number,))
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _nanoseconds(seconds: float, ahead_s: float) -> int:
    return max(0, int((seconds + ahead_s) * 1e9))


SCOPE = "tollkeeper"
REPEATED_STATUSES = frozenset({429, 502, 503, 504})
FIRST_PAUSE_S = 0.5
STOP_S_MAX = 5.0
ANSWER_BYTES_MAX = 65_536


class Exporter:
    """Takes encoded spans and sends them in a thread. `sent` and `dropped` count them."""

    def __init__(
        self,
        tracing: Tracing,
        version: str,
        log: Callable[..., None],
        *,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._tracing = tracing
        self._first_pause_s = first_pause_s
        self._version = version
        self._log = log
        self._resource = encoded_resource({
            **dict(tracing.resource),
            "telemetry.sdk.name": SCOPE,
            "telemetry.sdk.language": "python",
            "service.version": dict(tracing.resource).get("service.version", version),
        })  # fmt: skip
        parts = urlsplit(tracing.endpoint)
        self._target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        self._context = _make_context(tracing) if parts.scheme == "https" else None
        self._place = (parts.hostname or "", parts.port or (443 if self._context else 80))
        self._connection: http.client.HTTPConnection | None = None
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._reachable, self._unusable = True, ""
        self.sent = self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    def start(self) -> None:
        """Start the sending thread."""
        self._thread.start()

    def offer(self, spans: list[bytes]) -> None:
        """Queue the spans if there is room for all, else drop and count all. It never blocks."""
        with self._lock:
            waiting = len(self._waiting) + len(spans)
            if waiting > self._tracing.queue_spans_max:
                self.dropped += len(spans)
                return
            self._waiting += spans
        if waiting >= self._tracing.batch_spans_max:
            self._wake.set()

    def stop(self, within_s: float = STOP_S_MAX) -> None:
        """Send the queued spans once and end the thread; drop and count those left after `within_s`."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(within_s)
        with self._lock:
            self.dropped += len(self._waiting)
            self._waiting.clear()

    def snapshot(self) -> dict[str, list[list[object]]]:
        """Return the counts of sent and dropped spans for the metrics."""
        return {"spans": [["sent", self.sent], ["dropped", self.dropped]]}

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._tracing.delay_s)
            self._wake.clear()
            self._send_all()
        self._send_all()
        self._disconnect()

    def _send_all(self) -> None:
        """Send the waiting spans in batches, and count the sent and the dropped ones."""
        size = self._tracing.batch_spans_max
        while True:
            with self._lock:
                batch, self._waiting = self._waiting[:size], self._waiting[size:]
            if not batch:
                return
            taken = self._send(encoded_request(self._resource, SCOPE, self._version, batch))
            with self._lock:
                if taken:
                    self.sent += len(batch)
                else:
                    self.dropped += len(batch)

    def _send(self, body: bytes) -> bool:
        """Send one request with retries until its timeout; return whether the collector accepted it."""
        deadline = time.monotonic() + self._tracing.timeout_s
        pause = self._first_pause_s
        while True:
            status, told_s, why = self._post(body, deadline)
            if 200 <= status < 300:
                self._note(reachable=True, why="")
                return True
            self._note(reachable=False, why=why)
            wait_s = told_s if told_s is not None else pause * (0.5 + random())  # noqa: S311  # spreads retries
            pause *= 2
            if status not in REPEATED_STATUSES | {0} or time.monotonic() + wait_s > deadline:
                return False
            if self._stopping.wait(wait_s):
                return False

    def _post(self, body: bytes, deadline: float) -> tuple[int, float | None, str]:
        """Send one request; return its status (0 for none), the requested wait in seconds, and the error."""
        fields = {"Content-Type": "application/x-protobuf", "User-Agent": f"{SCOPE}/{self._version}"}
        if self._tracing.gzip:
            fields["Content-Encoding"], body = "gzip", gzip.compress(body, 6)
        while True:
            is_kept = self._connection is not None
            try:
                connection = self._connect(max(0.1, deadline - time.monotonic()))
                connection.request("POST", self._target, body, fields | dict(self._tracing.headers))
                with connection.getresponse() as answer:
                    answer.read(ANSWER_BYTES_MAX)
                    if not answer.isclosed():
                        self._disconnect()
                    return answer.status, _seconds(answer.getheader("Retry-After")), f"status {answer.status}"
            except (OSError, http.client.HTTPException) as error:
                self._disconnect()
                if not is_kept:  # a kept connection may have been closed meanwhile
                    return 0, None, type(error).__name__

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """Return the open connection, or a new one."""
        if self._connection is None:
            host, port = self._place
            self._renew_context()
            self._connection = (
                http.client.HTTPConnection(host, port)
                if self._context is None
                else http.client.HTTPSConnection(host, port, context=self._context)
            )
        self._connection.timeout = timeout_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout_s)
        return self._connection

    def _renew_context(self) -> None:
        """Reload the TLS files. An unusable file changes nothing, and is logged once."""
        if self._context is None:
            return
        why = ""
        try:
            self._context = _make_context(self._tracing)
        except StartError as error:
            why = error.message
        if why and why != self._unusable:
            self._log("certificates for traces are kept as they were", why=why, level="warning")
        self._unusable = why

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None

    def _note(self, reachable: bool, why: str) -> None:
        """Log once that the collector refuses spans, and once that it accepts spans again."""
        if reachable != self._reachable:
            self._reachable = reachable
            if reachable:
                self._log("traces are collected again")
            else:
                self._log("traces are not collected", why=why, level="warning")


def _make_context(tracing: Tracing) -> ssl.SSLContext:
    """Return the TLS context for the collector; raise `StartError`."""
    try:
        require_regular(tracing.ca_file, tracing.client_certificate, tracing.client_key)
        context = ssl.create_default_context(cafile=tracing.ca_file or None)
        if tracing.client_certificate:
            context.load_cert_chain(tracing.client_certificate, tracing.client_key or None)
    except OSError as error:
        raise StartError(f"The certificates for sending traces cannot be used: {error.strerror}.") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _seconds(text: str | None) -> float | None:
    """Return the seconds of a `Retry-After` value; None for a date."""
    return float(text) if text is not None and text.isdigit() and len(text) < 7 else None


# Which requests are recorded, and the encoding of their spans; the exporter sends them.
#
# Spans are encoded where a request ends, a few microseconds at a time: a thread that encodes batches would
# delay all requests of a worker by milliseconds.
class Recorder:
    """Decides which requests are traced, and encodes their spans.

    `offer` takes encoded spans for sending, and never blocks. `seconds` is the clock of spans, `unix_seconds`
    the time of day, `random` returns n bytes.
    """

    def __init__(
        self,
        tracing: Tracing,
        offer: Callable[[list[bytes]], None],
        seconds: Callable[[], float],
        unix_seconds: Callable[[], float],
        random: Callable[[int], bytes],
    ) -> None:
        self._offer = offer
        self._seconds = seconds
        self._unix_seconds = unix_seconds
        self._random = random
        self._follows_parent = tracing.follows_parent
        # A trace is recorded if the low 63 bits of its id are below this: every process agrees.
        self._below = round(tracing.ratio * (1 << 63))

    def begin(self, parent: Parent | None) -> Trace:
        """Return the trace of a new request, and decide whether it is recorded."""
        ids = self._random(IDS_BYTES)
        if parent is not None and self._follows_parent:
            return begin_trace(parent, parent.is_sampled, ids)
        trace_id = parent.trace_id if parent is not None else ids
        low = int.from_bytes(trace_id[8:16], "big") & (1 << 63) - 1
        return begin_trace(parent, low < self._below, ids)

    def end(self, trace: Trace, spans: list[Span]) -> None:
        """Encode and queue the spans of an ended request, with times converted to Unix time."""
        ahead_s = self._unix_seconds() - self._seconds()
        self._offer([
            encoded_span(
                trace.trace_id,
                span,
                ahead_s,
                remote_parent=bool(trace.parent_id) and span.span_id == trace.span_id,
                state=trace.state,
            )
            for span in spans
        ])  # fmt: skip


# The door to a collector of traces: spans become OTLP, which a separate thread sends.
