"""Meter an answer that is a stream of events, as they pass.

Chunks pass as they came. Only where a usage frame must be left out do bytes wait, and then
no longer than to the end of their event.
"""

from __future__ import annotations

from gateway.core.call import Bounds, Call
from gateway.core.meter.meter import Dialect, Meter
from gateway.core.sse import Splitter, data_of

OPENING_BYTES_MAX = 4096


class StreamMeter(Meter):
    """Read each event once it is complete."""

    __slots__ = ("_dialect", "_oversized", "_splitter", "_strip")

    def __init__(self, call: Call, status: int, bounds: Bounds, dialect: Dialect) -> None:
        Meter.__init__(self, call, status, bounds)
        self._dialect = dialect
        self._splitter = Splitter()
        self._strip = call.strip_usage and 200 <= status < 300
        self._oversized = False

    def feed(self, chunk: bytes) -> bytes:
        """Read the events this chunk completes; return what passes now."""
        splitter = self._splitter
        events = splitter.feed(chunk)
        if not self._strip:
            for event in events:
                self._read(event)
            if len(splitter.pending) > self.bounds.event_bytes_max:
                self._give_up_event()
            return chunk
        if len(events) == 1 and events[0] is chunk:
            return b"" if self._read(chunk) else chunk
        passed = [event for event in events if not self._read(event)]
        if len(splitter.pending) > self.bounds.event_bytes_max:
            passed.append(self._give_up_event())
        return b"".join(passed)

    def finish(self) -> bytes:
        """Read an event the stream ended in; return it unless it is left out."""
        self.ended = True
        rest = self._splitter.take()
        left_out = bool(rest) and self._read(rest)
        if self.opening is None and not self.reported:
            self.failed = True
        self.call.text_bytes = self.text_bytes
        return rest if self._strip and not left_out else b""

    def cut(self) -> bytes:
        """End the stream here in the API's own shape, unless part of an event has passed."""
        if self._oversized or (self._splitter.pending and not self._strip):
            return b""
        self._splitter.take()
        return self._dialect.closing(self)

    def _read(self, event: bytes) -> bool:
        """Read one event; say whether it is a usage frame to be left out."""
        if self._oversized:  # the end of an event whose beginning was let go
            self._oversized = False
            self.text_bytes += len(event)
            return False
        data = data_of(event)
        if not data:
            return False
        if self.opening is None:
            self.opening = data if len(data) <= OPENING_BYTES_MAX else b""
        return self._dialect.read_event(self, data) and self._strip

    def _give_up_event(self) -> bytes:
        """Stop keeping an event that is too long; its bytes count as text."""
        pending = self._splitter.take()
        self._oversized = True
        self.text_bytes += len(pending)
        return pending
