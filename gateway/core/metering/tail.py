"""The last bytes of an answer whose end its own bytes tell: they wait until it is complete.

A document is over where its brackets close; a coded one that nobody here reads, some bytes before its end.
"""

from __future__ import annotations

import re

from gateway.core.metering.meter import BEHIND_END_BYTES_MAX

CODED_BYTES = 1024
_WHITE = b" \t\r\n"
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_TEXT_END = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)


class Brackets:
    """Follow the brackets of a document that comes in pieces: RFC 8259, but for what stands between them."""

    __slots__ = ("_depth", "_escaped", "_in_text", "_seen")

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = self._escaped = self._seen = False

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        if not piece:
            return
        at = int(self._escaped)
        escapes = piece[at:]
        self._escaped = (len(escapes) - len(escapes.rstrip(b"\\"))) % 2 == 1
        if self._in_text:
            end = _TEXT_END.match(piece, at)
            if end is None:
                return
            at, self._in_text = end.end(), False
        rest, quote, _ = _TEXT.sub(b"", piece[at:]).partition(b'"')
        self._in_text = bool(quote)  # it goes on in the next piece
        self._escaped = self._escaped and self._in_text
        opened = rest.count(b"{") + rest.count(b"[")
        self._seen = self._seen or opened > 0
        self._depth += opened - rest.count(b"}") - rest.count(b"]")

    @property
    def closed(self) -> bool:
        """Whether a document in brackets began, and all of them are closed."""
        return self._seen and self._depth <= 0 and not self._in_text


class Tail:
    """Pass bytes on but for the last: from a document's last byte, or `size` bytes of a coded answer."""

    __slots__ = ("_brackets", "_size", "_unfollowed", "_unfollowed_bytes", "rest", "surplus")

    def __init__(self, size: int = 0) -> None:
        self._size = size
        self.rest = b""
        # More white space follows the document than is kept.
        self.surplus = False
        self._brackets: Brackets | None = None
        # Brackets matter from where there is room for too much white space: most answers are never followed.
        self._unfollowed: list[bytes] = []
        self._unfollowed_bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; return those that may pass."""
        data = self.rest + chunk if self.rest else chunk
        if self._size:
            keep_from = max(0, len(data) - self._size)
        else:
            self._follow(chunk)
            keep_from = len(data.rstrip(_WHITE)) - 1
            if keep_from < 0:  # white space in front of a document, or within one of its texts
                return data
            if len(data) - keep_from > BEHIND_END_BYTES_MAX:
                if not self._closed:
                    self.rest = b""
                    return data
                self.surplus = True
        self.rest = data[keep_from:]
        return data[:keep_from]

    def take(self) -> bytes:
        """Give up the rest: the answer is complete."""
        rest, self.rest = self.rest, b""
        return rest

    @property
    def _closed(self) -> bool:
        return self._brackets is not None and self._brackets.closed

    def _follow(self, chunk: bytes) -> None:
        if self._brackets is not None:
            self._brackets.feed(chunk)
            return
        self._unfollowed.append(chunk)
        self._unfollowed_bytes += len(chunk)
        if self._unfollowed_bytes > BEHIND_END_BYTES_MAX:
            self._brackets = Brackets()
            self._brackets.feed(b"".join(self._unfollowed))
            self._unfollowed.clear()
