"""A thread that sends encoded spans to a collector over OTLP/HTTP; a request never waits for it.

The queue is bounded: what does not fit, and what a collector does not take within its time, is
dropped and counted. Repeated are the answers the protocol names, and connections that fail
(OTLP specification, "OTLP/HTTP Response" and "OTLP/HTTP Throttling").
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import ssl
import threading
import time
from collections.abc import Callable
from random import random
from urllib.parse import urlsplit

from gateway.core.otel import Tracing
from gateway.errors import StartError
from gateway.files import require_regular
from gateway.telemetry.traces.otlp import encoded_request, encoded_resource

SCOPE = "tollkeeper"
REPEATED_STATUSES = frozenset({429, 502, 503, 504})
FIRST_PAUSE_S = 0.5
STOP_S_MAX = 5.0
ANSWER_BYTES_MAX = 65_536


class Exporter:
    """Takes encoded spans and sends them. `sent` and `dropped` count them."""

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
        self._context = _context(tracing) if parts.scheme == "https" else None
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
        """Begin to send."""
        self._thread.start()

    def offer(self, spans: list[bytes]) -> None:
        """Take spans if there is room for all of them, else drop and count them. Never waits."""
        with self._lock:
            waiting = len(self._waiting) + len(spans)
            if waiting > self._tracing.queue_spans_max:
                self.dropped += len(spans)
                return
            self._waiting += spans
        if waiting >= self._tracing.batch_spans_max:
            self._wake.set()

    def stop(self, within_s: float = STOP_S_MAX) -> None:
        """Send what waits, once, and end; what is left then is dropped."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(within_s)
        with self._lock:
            self.dropped += len(self._waiting)
            self._waiting.clear()

    def snapshot(self) -> dict[str, list[list[object]]]:
        """What became of the spans, as the metrics have it."""
        return {"spans": [["sent", self.sent], ["dropped", self.dropped]]}

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._tracing.delay_s)
            self._wake.clear()
            self._send_all()
        self._send_all()
        self._disconnect()

    def _send_all(self) -> None:
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
        """Whether the collector took one request, asked again within its time where that may help."""
        deadline = time.monotonic() + self._tracing.timeout_s
        pause = self._first_pause_s
        while True:
            status, told_s, why = self._post(body, deadline)
            if 200 <= status < 300:
                self._note(True, "")
                return True
            self._note(False, why)
            wait_s = told_s if told_s is not None else pause * (0.5 + random())  # noqa: S311  # spreads retries
            pause *= 2
            if status not in REPEATED_STATUSES | {0} or time.monotonic() + wait_s > deadline:
                return False
            if self._stopping.wait(wait_s):
                return False

    def _post(self, body: bytes, deadline: float) -> tuple[int, float | None, str]:
        """One attempt: the status (0 for none), how long the collector asks to wait, and what was wrong."""
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
        """The connection that is kept, or a new one."""
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
        """Go by what the files of TLS hold now; what cannot be used changes nothing, and is told once."""
        if self._context is None:
            return
        why = ""
        try:
            self._context = _context(self._tracing)
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
        """Say once that the collector does not take spans, and once that it does again."""
        if reachable != self._reachable:
            self._reachable = reachable
            if reachable:
                self._log("traces are collected again")
            else:
                self._log("traces are not collected", why=why, level="warning")


def _context(tracing: Tracing) -> ssl.SSLContext:
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
    """`Retry-After` in seconds; a date is not honoured."""
    return float(text) if text is not None and text.isdigit() and len(text) < 7 else None
