"""Which requests are recorded, and how their spans become bytes; sending is `exporter.py`'s.

Encoding is done where the request ended, a few microseconds at a time: a thread that encodes
batches would hold up a worker's every request for milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.calls.trace import IDS_BYTES, Parent, Span, Trace, begin_trace
from gateway.core.otel import Tracing
from gateway.telemetry.traces.otlp import encoded_span


class Recorder:
    """The data plane's tracer.

    `offer` takes encoded spans, to be sent some time, and never waits. `seconds` is the clock of the spans,
    `unix_seconds` the time of day, `random` gives n bytes.
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
        """The trace of a request that has come; whether it is recorded is decided now."""
        ids = self._random(IDS_BYTES)
        if parent is not None and self._follows_parent:
            return begin_trace(parent, parent.is_sampled, ids)
        trace_id = parent.trace_id if parent is not None else ids
        low = int.from_bytes(trace_id[8:16], "big") & (1 << 63) - 1
        return begin_trace(parent, low < self._below, ids)

    def end(self, trace: Trace, spans: list[Span]) -> None:
        """The request is over: encode its spans, whose clock is set by the time of day now."""
        ahead_s = self._unix_seconds() - self._seconds()
        self._offer([
            encoded_span(
                trace.trace_id,
                span,
                ahead_s,
                remote_parent=bool(trace.parent_id) and span.span_id == trace.span_id,
            )
            for span in spans
        ])  # fmt: skip
