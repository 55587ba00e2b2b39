"""The last bytes of an answer whose end its own bytes tell: they wait until it is complete.

A document is over with its last byte that is no white space; a coded one that nobody here reads,
some bytes before its end.
"""

from __future__ import annotations

from gateway.core.metering.meter import BEHIND_END_BYTES_MAX

CODED_BYTES = 1024
_WHITE = b" \t\r\n"


class Tail:
    """Pass bytes on but for the last: from a document's last byte, or `size` bytes of a coded answer."""

    __slots__ = ("_size", "rest")

    def __init__(self, size: int = 0) -> None:
        self._size = size
        self.rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; return those that may pass."""
        data = self.rest + chunk if self.rest else chunk
        if self._size:
            keep_from = max(0, len(data) - self._size)
        else:
            keep_from = len(data.rstrip(_WHITE)) - 1
            if keep_from < 0:  # white space in front of a document
                return data
        self.rest = data[keep_from:]
        return data[:keep_from]

    def take(self) -> bytes:
        """Give up the rest: the answer is complete."""
        rest, self.rest = self.rest, b""
        return rest

    @property
    def surplus(self) -> bool:
        """Whether more white space follows the document than is kept."""
        return len(self.rest) > BEHIND_END_BYTES_MAX
