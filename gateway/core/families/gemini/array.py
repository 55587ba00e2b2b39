"""Gemini's stream in the form of one JSON array: each element is read, and passes, once it is complete.

The element that finishes the answer, and the closing bracket of the array, wait for the end.
"""

from __future__ import annotations

import re

from gateway.core.calls.call import CallRequest, UsageBounds
from gateway.core.families.gemini.answers import DIALECT, ENDING, end_of, take
from gateway.core.metering.meter import BEHIND_END_BYTES_MAX, CLOSED, FINISHED, OPEN, Meter
from gateway.core.metering.stream import TextShortener
from gateway.core.model import TokenUsage

_OUTSIDE = re.compile(rb'["{}\]]')
_INSIDE = re.compile(rb'["\\]')


class ArrayMeter(Meter):
    """Meter of a stream in the form of one JSON array.

    It scans every byte once, however the array is split into chunks. Positions count from the start of the
    answer, and bytes before `_safe` pass to the client.
    """

    __slots__ = (
        "_depth", "_element", "_element_at", "_escaped", "_fed", "_first_end", "_in_string", "_is_array",
        "_kept_bytes", "_safe", "_shortened", "_waiting",
    )  # fmt: skip

    def __init__(self, call: CallRequest, status: int, bounds: UsageBounds) -> None:
        Meter.__init__(self, call, status, bounds)
        self._depth = self._kept_bytes = self._fed = self._safe = self._element_at = self._first_end = 0
        self._in_string = self._escaped = self._is_array = False
        self._element: list[bytes] = []
        self._shortened: TextShortener | None = None
        self._waiting: list[bytes] = []

    def feed(self, chunk: bytes) -> bytes:
        """Read the elements of the array that this chunk completes; return the bytes that may pass now."""
        at, start, size, before = 0, 0, len(chunk), self._fed
        while at < size:
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            match = (_INSIDE if self._in_string else _OUTSIDE).search(chunk, at)
            if match is None:
                break
            at = match.end()
            mark = match[0]
            if mark == b'"':
                self._in_string = not self._in_string
            elif mark == b"\\":
                self._escaped = True
            elif mark == b"{":
                self._depth += 1
                if self._depth == 1:
                    start = at - 1
                    self._begin(before + start)
            elif mark == b"]":
                self._end_array(before + at - 1)
            elif self._depth == 1:
                self._depth = 0
                self._complete(chunk[start:at], before + at)
            else:
                self._depth = max(0, self._depth - 1)
        self._fed = before + size
        if self._depth > 0:
            self._keep(chunk[start:])
        if self._kept_bytes > self.bounds.event_bytes_max or (self._depth == 0 and self.phase == OPEN):
            self._safe = self._fed
        return self._pass(chunk, before)

    def finish(self) -> bytes:
        self.ended = True
        if not (self.begun or self.last_word or self.reported or self.failed):  # no answer of this API
            self.broke = self._depth > 0 or (self._is_array and self.phase != CLOSED)
            self.unreadable(max(self._fed - self.text_bytes, 0))
            self.failed = not (self._fed or self.unread)
        waiting, self._waiting = self._waiting, []
        return b"".join(waiting)

    def usage(self) -> TokenUsage:
        self.see_rest(b"".join(self._element))
        return Meter.usage(self)

    @property
    def is_whole(self) -> bool:
        return self.ends_by(ENDING)

    @property
    def kept(self) -> int:
        kept = self._kept_bytes if self._shortened is None else self._shortened.kept
        return self.withheld + kept

    def cut(self) -> bytes:
        """Return bytes that end the array with `MAX_TOKENS`; empty if a part of an element was sent."""
        if self._kept_bytes > self.bounds.event_bytes_max:
            return b""
        return (b",\r\n" if 0 < self._first_end <= self._safe else b"[") + end_of(self) + b"]"

    def fail(self, body: bytes) -> bytes:
        """Return bytes that end the array with the error `body`; empty if part of an element was sent."""
        if self._kept_bytes > self.bounds.event_bytes_max:
            return b""
        return (b",\r\n" if 0 < self._first_end <= self._safe else b"[") + body + b"]"

    def _begin(self, place: int) -> None:
        self._element_at = place
        if self.phase == OPEN:
            self._safe = place

    def _end_array(self, place: int) -> None:
        if self._depth == 0 and self.phase != CLOSED:
            if self.phase == OPEN:
                self._safe = place
            self.phase = CLOSED

    def _complete(self, last: bytes, end: int) -> None:
        """Read a complete element of the array, which ends at position `end` with the bytes `last`.

        An element that finishes the answer is held back until the array ends, or another element has
        content.
        """
        shortened = self._shortened
        if shortened is None:
            element = b"".join((*self._element, last))
        else:
            shortened.feed_to(self, last)
            element = shortened.document
        self._element, self._kept_bytes, self._shortened = [], 0, None
        self._first_end = self._first_end or end
        finished, content, before = self.finished, self.content_events, self.text_bytes
        if shortened is not None and not element:
            self.unread = True  # but for its ends
            shortened.read_ends(self, DIALECT)
        else:
            take(self, element, False)
        if self.text_bytes > self.dense_from:
            self.see_words(element, before)
        goes_on = self.phase == OPEN or (self.phase == FINISHED and self.content_events > content)
        if self.finished > finished and self.phase != CLOSED:
            self.phase = FINISHED
            self._safe = max(self._safe, self._element_at) if goes_on else self._safe
        elif goes_on:
            self.phase = OPEN
            self._safe = end

    def _keep(self, part: bytes) -> None:
        """Store a part of the present element, shortened if the element is too large."""
        self._kept_bytes += len(part)
        if self._kept_bytes <= self.bounds.event_bytes_max:
            self._element.append(part)
            return
        if self._shortened is None:
            part = b"".join((*self._element, part))
            self._element, self._shortened = [], TextShortener(self.bounds.event_bytes_max)
        self._shortened.feed_to(self, part)

    def _pass(self, chunk: bytes, before: int) -> bytes:
        """Return the bytes of the answer that may pass to the client now: those before position `_safe`.

        `before` is the position of `chunk`. All other bytes are held back.
        """
        if not before:
            self._is_array = chunk.lstrip()[:1] == b"["
        if self._safe <= before:
            passed, at = self._waiting_up_to(self._safe - before + self.withheld), 0
        else:
            at = self._safe - before
            passed, self._waiting = b"".join((*self._waiting, chunk[:at])), []
        if at < len(chunk):
            self._waiting.append(chunk[at:])
        self.withheld = self._fed - self._safe
        self.surplus = self.phase == CLOSED and self.withheld > (
            self.bounds.event_bytes_max + BEHIND_END_BYTES_MAX
        )
        return passed

    def _waiting_up_to(self, size: int) -> bytes:
        """Remove and return the first `size` bytes of those that are held back from the client."""
        if size <= 0:
            return b""
        waiting = b"".join(self._waiting)
        self._waiting = [waiting[size:]]
        return waiting[:size]
