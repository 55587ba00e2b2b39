"""Gemini's stream in the form of one JSON array: each element is read once it is complete."""

from __future__ import annotations

import re

from gateway.core.call import Bounds, Call
from gateway.core.meter.gemini import end_of, take
from gateway.core.meter.meter import Meter

_OUTSIDE = re.compile(rb'["{}]')
_INSIDE = re.compile(rb'["\\]')


class ArrayMeter(Meter):
    """Meter a stream in the form of one JSON array: each element is read once it is complete.

    The scan looks at every byte once, however the array is split.
    """

    __slots__ = ("_depth", "_element", "_escaped", "_in_string", "_kept_bytes", "_some")

    def __init__(self, call: Call, status: int, bounds: Bounds) -> None:
        Meter.__init__(self, call, status, bounds)
        self._depth = self._kept_bytes = 0
        self._in_string = self._escaped = self._some = False
        self._element: list[bytes] = []

    def feed(self, chunk: bytes) -> bytes:
        """Read the elements this chunk completes and pass it on."""
        at, start, size = 0, 0, len(chunk)
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
            elif self._depth > 0:
                self._depth -= 1
                if self._depth == 0:
                    self._complete(chunk[start:at])
        if self._depth > 0:
            self._keep(chunk[start:])
        return chunk

    def cut(self) -> bytes:
        """End the array here, as if the maximum had been reached."""
        if self._depth > 0:
            return b""
        return (b",\r\n" if self._some else b"[") + end_of(self) + b"]"

    def _complete(self, last: bytes) -> None:
        element = b"".join((*self._element, last))
        self._element, self._kept_bytes, self._some = [], 0, True
        take(self, element, False)

    def _keep(self, part: bytes) -> None:
        self._kept_bytes += len(part)
        if self._kept_bytes > self.bounds.event_bytes_max:
            self.text_bytes += len(part)
        else:
            self._element.append(part)
