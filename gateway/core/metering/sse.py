"""Split a server-sent event stream into events without changing a byte.

Any split of the input gives the same data, which is why a CR at the end of a chunk waits for
the next byte. Empty lines and comments behind an event are one event without data, however many.
Lines end in LF, CRLF or CR; an event ends at an empty line; a leading BOM is dropped from the
data only (HTML Living Standard, 9.2).
"""

from __future__ import annotations

import re

_END = re.compile(rb"\r\n(?:\r\n|\n|\r(?=[^\n]))|\n(?:\r\n|\n|\r(?=[^\n]))|\r\r(?:\n|(?=[^\n]))")
_IDLE = re.compile(rb"(?:[\r\n]++|:[^\r\n]*+[\r\n])++")
_BOM = b"\xef\xbb\xbf"
_MARK = re.compile(rb"(?:\A|[\r\n])(?:\xef\xbb\xbf)?(?:data[ \t]*:)?[ \t\"'\x0b\x0c]*\[DONE\]")
_NAME = re.compile(
    rb"event(?:(?<=\A.{5})|(?<=[\r\n].{5})|(?<=\xef\xbb\xbf.{5}))[ \t]*:[ \t\"']*"
    rb"(?:message_stop|done|response\.(?:completed|incomplete|failed|cancelled))[ \t\"']*(?:[\r\n]|\Z)"
)


class Splitter:
    """Give the complete events of the chunks fed so far; the rest waits in `pending`."""

    __slots__ = ("_scanned", "pending")

    def __init__(self) -> None:
        self.pending = b""
        self._scanned = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events this chunk completes, each with its bytes as they came."""
        if not self.pending and b"\r" not in chunk and 0 <= chunk.find(b"\n\n") == len(chunk) - 2:
            return [chunk]
        data = self.pending + chunk if self.pending else chunk
        events: list[bytes] = []
        start, scan = 0, self._scanned
        while (end := _END.search(data, scan)) is not None:
            scan = end.end()
            events.append(data[start:scan])
            start = scan
            idle = _IDLE.match(data, scan)
            if idle is not None:
                start = scan = idle.end()
                events.append(idle[0])
        self.pending = data[start:]
        self._scanned = max(0, len(self.pending) - 3)
        return events

    def take(self) -> bytes:
        """Give up the pending bytes: the stream ended, or the event is too long to keep."""
        pending, self.pending, self._scanned = self.pending, b"", 0
        return pending


def says_end(event: bytes) -> bool:
    """Whether an event says by its name, or by the mark in any of its lines, that the stream is over.

    Clients differ in what they take for it: a line that only begins with the mark, a quoted one, a
    name without data. All of that counts, of each API for every other.
    """
    return has_mark(event) or (b"event" in event and _NAME.search(event) is not None)


def has_mark(event: bytes) -> bool:
    """Whether an event has the mark, behind which nobody waits for more."""
    return b"[DONE]" in event and _MARK.search(event) is not None


def data_of(event: bytes) -> bytes:
    """Return the data of one event, its lines joined by LF; empty where it has none."""
    if event[:6] == b"data: " and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    if b"data" not in event:
        return b""
    lines: list[bytes] = []
    for line in event.removeprefix(_BOM).splitlines():
        if line[:5] == b"data:":
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            lines.append(b"")
    return lines[0] if len(lines) == 1 else b"\n".join(lines)
