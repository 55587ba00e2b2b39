"""Meters of streams that are no server-sent events: Amazon's frames, and JSON objects in lines.

A frame is two lengths with their checksum, headers, a payload, and a checksum of everything. Bytes that are
no whole frame, or have a wrong length, are charged as text, and nothing after them is read as a frame.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error
from zlib import crc32

from gateway.core.calls.call import CallRequest, UsageBounds
from gateway.core.metering.meter import CLOSED, FINISHED, OPEN, Dialect
from gateway.core.metering.reading import loose_document
from gateway.core.metering.stream import Splitter, StreamMeter

_PRELUDE_BYTES = 12
_CHECKSUM_BYTES = 4
_TEXT = 7
# Bytes of a header's value by its type. -1 means that the value begins with its length.
_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 6: -1, _TEXT: -1, 8: 8, 9: 16}
_FAILED = b"modelStreamErrorException"


def frame_of(headers: list[tuple[bytes, bytes]], payload: bytes) -> bytes:
    """Return one frame of Amazon's event stream, with text headers."""
    fields = b"".join(
        [b"%c%b\x07%b%b" % (len(name), name, len(value).to_bytes(2, "big"), value) for name, value in headers]
    )
    size = _PRELUDE_BYTES + len(fields) + len(payload) + _CHECKSUM_BYTES
    prelude = size.to_bytes(4, "big") + len(fields).to_bytes(4, "big")
    begun = prelude + crc32(prelude).to_bytes(4, "big") + fields + payload
    return begun + crc32(begun).to_bytes(4, "big")


def headers_of(frame: bytes) -> dict[bytes, bytes] | None:
    """Return the headers of a whole frame, or None if it is malformed or its checksum is wrong."""
    if len(frame) < _PRELUDE_BYTES + _CHECKSUM_BYTES:
        return None
    if crc32(frame[:-_CHECKSUM_BYTES]) != int.from_bytes(frame[-_CHECKSUM_BYTES:], "big"):
        return None
    headers: dict[bytes, bytes] = {}
    at, end = _PRELUDE_BYTES, _PRELUDE_BYTES + int.from_bytes(frame[4:8], "big")
    while at < end:
        named = at + 1 + frame[at]
        size = _SIZES.get(frame[named], -2) if named < end else -2
        if size == -2:
            return None
        name, at = frame[at + 1 : named], named + 1
        if size == -1:
            size, at = int.from_bytes(frame[at : at + 2], "big"), at + 2
        headers[name] = frame[at : at + size]
        at += size
    return headers if at == end else None


class FrameSplitter(Splitter):
    """Split a stream into complete frames. After a broken frame, all further bytes come as they are."""

    __slots__ = ("_broken", "_bytes_max")

    def __init__(self, bytes_max: int) -> None:
        Splitter.__init__(self)
        self._bytes_max = bytes_max
        self._broken = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the frames that this chunk completes, each with its raw bytes."""
        data = self.pending + chunk if self.pending else chunk
        frames: list[bytes] = []
        at = 0
        while not self._broken and len(data) - at >= _PRELUDE_BYTES:
            size = int.from_bytes(data[at : at + 4], "big")
            fields = int.from_bytes(data[at + 4 : at + 8], "big")
            checked = crc32(data[at : at + 8]) == int.from_bytes(data[at + 8 : at + 12], "big")
            least = _PRELUDE_BYTES + fields + _CHECKSUM_BYTES
            if not checked or not least <= size <= self._bytes_max:
                self._broken = True
            elif len(data) - at < size:
                break
            else:
                frames.append(data[at : at + size])
                at += size
        self.pending = data[at:]
        if self._broken and self.pending:
            frames.append(self.take())
        return frames


class EventStreamMeter(StreamMeter):
    """Meter of a stream in Amazon's frames.

    The dialect gets one JSON object for each frame: the payload under the name of its event, or the event of
    another API inside a `chunk`.
    """

    __slots__ = ()

    def __init__(self, call: CallRequest, status: int, bounds: UsageBounds, dialect: Dialect) -> None:
        StreamMeter.__init__(self, call, status, bounds, dialect)
        self._splitter = FrameSplitter(bounds.event_bytes_max)

    def cut(self) -> bytes:
        """Return nothing: a stream of frames cannot be ended well, so the connection is closed."""
        return b""

    def fail(self, body: bytes) -> bytes:
        """Return an exception frame with the error `body`, which ends the stream."""
        self._splitter.take()
        headers = [
            (b":message-type", b"exception"), (b":exception-type", _FAILED),
            (b":content-type", b"application/json"),
        ]  # fmt: skip
        return frame_of(headers, body)

    def slim(self) -> None:
        """Stop storing texts, because memory is short. Frames are still stored whole."""
        self.texts = None

    def _read(self, event: bytes) -> bool:
        """Count what one event of the stream reports; an unreadable event or an error ends it."""
        if self.phase == CLOSED and self.final:  # after the end no client reads on, and no report changes
            return False
        if self.opening is None:
            self.opening = b""
        headers = headers_of(event)
        payload = None if headers is None else _json_in(event, headers)
        if payload is None or headers is None:
            self.unreadable(len(event))
            self.phase = max(self.phase, FINISHED)
            return False
        if headers.get(b":message-type") != b"event":
            self.failed = True
            self.phase = max(self.phase, FINISHED)
            return False
        _take(self, self._dialect, payload)
        return False


class LineSplitter(Splitter):
    """Split a stream into complete lines. The last, incomplete line waits in `pending`."""

    __slots__ = ()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that this chunk completes, each with its raw bytes."""
        if b"\n" not in chunk:
            self.pending += chunk
            return []
        lines = (self.pending + chunk).splitlines(keepends=True)
        self.pending = b"" if chunk.endswith(b"\n") else lines.pop()
        return lines


class LinesMeter(StreamMeter):
    """Meter of a stream with one JSON object a line (`application/x-ndjson`)."""

    __slots__ = ()

    def __init__(self, call: CallRequest, status: int, bounds: UsageBounds, dialect: Dialect) -> None:
        StreamMeter.__init__(self, call, status, bounds, dialect)
        self._splitter = LineSplitter()

    def fail(self, body: bytes) -> bytes:
        """Return a line with the error `body`, or nothing if part of a line has passed."""
        return b"" if self._oversized is not None else body + b"\n"

    def _read(self, event: bytes) -> bool:
        """Count what one line of the stream reports."""
        data = event.strip()
        if not data or (self.phase == CLOSED and self.final):
            return False
        if self.opening is None:
            if data[:1] != b"{":
                self.unreadable(len(event))
                return False
            self.opening = b""
        _take(self, self._dialect, data)
        return False


def _take(meter: StreamMeter, dialect: Dialect, payload: bytes) -> None:
    """Read one event, and note in the meter whether the answer has content, or is finished."""
    finished, content, before = meter.finished, meter.content_events, meter.text_bytes
    dialect.read_event(meter, payload)
    if meter.text_bytes > meter.dense_from:
        meter.see_words(payload, before)
    if meter.phase != CLOSED:
        if meter.finished > finished:
            meter.phase = FINISHED
        elif meter.content_events > content:
            meter.phase = OPEN


def _json_in(frame: bytes, headers: dict[bytes, bytes]) -> bytes | None:
    """Return the JSON in a frame of Amazon's event stream, or None if it cannot be read."""
    begins = _PRELUDE_BYTES + int.from_bytes(frame[4:8], "big")
    payload, name = frame[begins:-_CHECKSUM_BYTES], headers.get(b":event-type", b"")
    if headers.get(b":message-type") != b"event":
        return payload
    if name != b"chunk":
        return b'{"%b":%b}' % (name, payload or b"{}") if name.isalnum() else None
    held = loose_document(payload).get("bytes")
    try:
        return b64decode(held, validate=True) if isinstance(held, str) else None
    except (Error, ValueError):
        return None
