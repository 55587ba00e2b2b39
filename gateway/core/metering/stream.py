"""Meter an answer that is a stream of events, as they pass.

An event passes once it is complete. From the event on that says the answer is finished, or one choice
of it, everything waits for the end, so that nobody has a complete answer before it is charged; content
that comes behind it after all lets it pass.
"""

from __future__ import annotations

from gateway.core.calls.call import Bounds, Call
from gateway.core.metering.long import Shortened
from gateway.core.metering.meter import BEHIND_END_BYTES_MAX, CLOSED, FINISHED, OPEN, Dialect, Meter, slim
from gateway.core.metering.sse import Splitter, data_of, has_mark, says_end
from gateway.core.metering.tail import CODED_BYTES, Tail

OPENING_BYTES_MAX = 4096


class StreamMeter(Meter):
    """Read each event once it is complete."""

    __slots__ = (
        "_behind",
        "_dialect",
        "_held",
        "_held_bytes",
        "_oversized",
        "_shortened",
        "_splitter",
        "_strip",
        "_unread",
    )

    def __init__(self, call: Call, status: int, bounds: Bounds, dialect: Dialect) -> None:
        Meter.__init__(self, call, status, bounds)
        self._dialect = dialect
        self._splitter = Splitter()
        self._strip = call.strip_usage and 200 <= status < 300
        # The rest of an event that was too long to keep, and what is read of it: it passes but for its end.
        self._oversized: Tail | None = None
        self._shortened = Shortened(bounds.event_bytes_max)
        self._held: list[bytes] = []
        self._held_bytes = self._behind = self._unread = 0

    def feed(self, chunk: bytes) -> bytes:
        """Read the events this chunk completes; return what passes now."""
        if self.opening is None:
            self._unread += len(chunk)
        splitter = self._splitter
        events = splitter.feed(chunk)
        if len(events) == 1 and events[0] is chunk and not self._held_bytes and self._oversized is None:
            left_out = self._read(chunk)
            if self.phase == OPEN:
                return b"" if left_out else chunk
            self._hold(chunk, left_out)
            self.withheld = self._held_bytes
            return b""
        passed: list[bytes] = []
        for event in events:
            self._take(event, passed)
        if len(splitter.pending) > self.bounds.event_bytes_max or self._oversized is not None:
            self._pass_unread(splitter.take(), passed)
        self.withheld = self._held_bytes + len(splitter.pending)
        if self._oversized is not None:
            self.withheld += len(self._oversized.rest)
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def finish(self) -> bytes:
        """Read an event the stream ended in; return all that waited, unless it is left out."""
        self.ended = True
        passed = self._held
        self._held = []
        if self._oversized is not None:
            passed.append(self._oversized.take())
            self._read_shortened()
        rest = self._splitter.take()
        if rest and not self._read(rest):
            passed.append(rest)
        if self.opening is None and not self.reported:  # these were no events
            self.unreadable(max(self._unread - self.text_bytes, 0))
            self.failed = not (self._unread or self.unread)
        self.call.text_bytes = self.text_bytes
        return b"".join(passed)

    def cut(self) -> bytes:
        """End the stream here in the API's own shape, unless part of an event has passed."""
        if self._oversized is not None:
            return b""
        self._splitter.take()
        return self._dialect.closing(self)

    def fail(self, body: bytes) -> bytes:
        """Say in an event of the API's own why the stream ends here, unless part of an event has passed."""
        if self._oversized is not None:
            return b""
        self._splitter.take()
        return self._dialect.failing(self, body)

    @property
    def kept(self) -> int:
        """Bytes of the answer that are kept in memory."""
        return self._shortened.kept + (
            self.withheld if self.texts is None else self.withheld + self.text_bytes
        )

    def slim(self) -> None:
        """Let long events pass from now on, and keep none of their long texts."""
        self.texts = None
        self.bounds = slim(self.bounds)

    def _take(self, event: bytes, passed: list[bytes]) -> None:
        """Read an event that is complete: it passes, is left out, or is held."""
        if self._oversized is not None:
            self._end_oversized(event, passed)
            return
        was, content = self.phase, self.content_events
        left_out = self._read(event)
        if self.phase == OPEN or (was == FINISHED and self.content_events > content):
            self._release(passed)
        if self.phase != OPEN:
            self._hold(event, left_out)
        elif not left_out:
            passed.append(event)

    def _read(self, event: bytes) -> bool:
        """Read one event; say whether it is a usage frame to be left out."""
        if self.phase == CLOSED and self.final:  # behind the end no client reads on, and no report changes
            return False
        if says_end(event):
            self.phase = CLOSED
        data = data_of(event)
        if not data:
            if self.opening is None and event.lstrip(b"\r\n")[:1] in {b"", b":"}:  # it only keeps alive
                self._unread -= len(event)
            return False
        if self.opening is None:
            self.opening = data if len(data) <= OPENING_BYTES_MAX else b""
        finished, content = self.finished, self.content_events
        left_out = self._dialect.read_event(self, data)
        if self.phase != CLOSED:
            if self.finished > finished:
                self.phase = FINISHED
            elif self.content_events > content:
                self.phase = OPEN
        return left_out and self._strip

    def _hold(self, event: bytes, left_out: bool) -> None:
        if self._held_bytes:
            self._behind += len(event)
        self._held_bytes += len(event)
        if not left_out:
            self._held.append(event)
        if self._behind > BEHIND_END_BYTES_MAX:
            if self.phase == CLOSED:
                self.surplus = True
                self._held = []
            else:
                self.phase = OPEN

    def _release(self, passed: list[bytes]) -> None:
        """What was held was not the end."""
        passed += self._held
        self._held = []
        self._held_bytes = self._behind = 0

    def _pass_unread(self, part: bytes, passed: list[bytes]) -> None:
        """Stop keeping an event that is too long, but for what is read of it at its end."""
        if self._oversized is None:
            if self.phase == CLOSED or has_mark(part):  # no client may have it before the end
                self.phase, self.surplus = CLOSED, True
                self._hold(part, left_out=False)
                return
            self._release(passed)
            self._oversized = Tail(CODED_BYTES if says_end(part) else 0)
            self._shortened = Shortened(self.bounds.event_bytes_max)
        self._shorten(part)
        passed.append(self._oversized.feed(part))

    def _end_oversized(self, event: bytes, passed: list[bytes]) -> None:
        """The end of an event whose beginning was let go: it may close the stream."""
        assert self._oversized is not None
        self._shorten(event)
        passed.append(self._oversized.feed(event))
        rest = self._oversized.take()
        self._oversized = None
        self._read_shortened()
        self.phase = max(self.phase, FINISHED)
        self._hold(rest, left_out=False)

    def _shorten(self, part: bytes) -> None:
        shortened = self._shortened
        before = shortened.text_bytes
        shortened.feed(part)
        self.text_bytes += shortened.text_bytes - before

    def _read_shortened(self) -> None:
        """Read what is left of an event that was too long to keep."""
        shortened = self._shortened
        event = shortened.document
        if event:
            self._read(event)
        else:
            shortened.read_ends(self, self._dialect)
        self._shortened = Shortened(self.bounds.event_bytes_max)
