"""Meter an answer that is one JSON document: kept while it passes, read at its end.

A document longer than `kept_bytes_max` is judged by its head and tail, where every API puts
its usage; a broken one by the text that came.
"""

from __future__ import annotations

import re

from gateway.core.calls.call import Bounds, Call
from gateway.core.families.objects_told import may_tell, told
from gateway.core.metering.loose import loose_document, text_bytes, texts_in
from gateway.core.metering.meter import TOKENIZED_BYTES_MAX, Dialect, Meter, slim
from gateway.core.metering.tail import Tail

WINDOW_BYTES = 64 << 10

_USAGE = re.compile(rb'"(?:usage|usageMetadata|usage_metadata)"[ \t\r\n]*+:[ \t\r\n]*+\{')


class WholeMeter(Meter):
    """Keep the document, pass it on, read it at the end."""

    __slots__ = ("_dialect", "_end", "_examined", "_kept", "_kept_bytes", "_tail")

    def __init__(self, call: Call, status: int, bounds: Bounds, dialect: Dialect) -> None:
        Meter.__init__(self, call, status, bounds)
        self._dialect = dialect
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._tail = b""
        self._end = Tail()
        self._examined = 0

    def feed(self, chunk: bytes) -> bytes:
        """Keep the chunk and pass it on, but for the byte that may be the document's last."""
        self._keep(chunk)
        passed = self._end.feed(chunk)
        self.withheld = len(self._end.rest)
        self.surplus = self._end.surplus
        return passed

    def whole(self, answer: bytes) -> bytes:
        """Take a complete document, of which nothing has to wait."""
        self._keep(answer)
        self.finish()
        return answer

    def finish(self) -> bytes:
        """Read the document."""
        self.ended = True
        kept = self._kept
        if self._tail:
            self._read_windows()
        else:
            document = kept[0] if len(kept) == 1 else b"".join(kept)
            self._dialect.read_whole(self, document)
            if self.call.keeps and may_tell(self.call.family, document):
                self.told += told(self.call.family, loose_document(document))
            self._examine()
            if not self.reported:
                self.failed = self.failed or document.lstrip()[:1] != b"{"
        self._kept = []
        return self._end.take()

    @property
    def kept(self) -> int:
        """Bytes of the document that are kept."""
        return 2 * WINDOW_BYTES if self._tail else self._kept_bytes

    def slim(self) -> None:
        """Keep the two windows alone from now on; what tells of objects is read whole all the same."""
        if not self.call.keeps:
            self.bounds = slim(self.bounds)

    @property
    def produced(self) -> bool:
        """True once text was seen or use was reported."""
        self._examine()
        return self.reported or self.text_bytes > 0

    def observed(self) -> int:
        """Tokens seen so far: nothing is known of the output before the end."""
        if self.reported:
            return self.total
        return self.call.input_estimate if self._kept_bytes and 200 <= self.status < 300 else 0

    def _examine(self) -> None:
        """Count the text that came, for an answer that is broken or does not say what it used."""
        if (self.reported and not self.uncounted) or self._examined == self._kept_bytes or not self._kept:
            return
        self._examined = self._kept_bytes
        document = b"".join(self._kept)
        self.text_bytes = max(self.text_bytes, text_bytes(document))
        if self.texts is not None and self.text_bytes <= TOKENIZED_BYTES_MAX:
            self.texts = texts_in(document)

    def _keep(self, chunk: bytes) -> None:
        size = self._kept_bytes + len(chunk)
        self._kept_bytes = size
        if size <= self.bounds.kept_bytes_max:
            self._kept.append(chunk)
        else:
            self._keep_windows(chunk)

    def _keep_windows(self, chunk: bytes) -> None:
        if not self._tail:
            chunk = b"".join((*self._kept, chunk))
            self._kept = [chunk[:WINDOW_BYTES]]
        self._tail = (self._tail + chunk)[-WINDOW_BYTES:]

    def _read_windows(self) -> None:
        """Find the usage near the end, else near the start, and read it as a document of its own."""
        for window in (self._tail, self._kept[0]):
            for match in reversed(list(_USAGE.finditer(window))):
                end = _object_end(window, match.end() - 1)
                if end:
                    self._dialect.read_whole(self, b"{" + window[match.start() : end] + b"}")
                if self.reported and not self.uncounted:
                    return
        self.text_bytes = max(self.text_bytes, self._kept_bytes)
        self._examined = self._kept_bytes


_PART = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}]', re.DOTALL)


def _object_end(window: bytes, start: int) -> int:
    """Return the end of the object that begins at `start`, 0 where it is broken off."""
    depth = 0
    for match in _PART.finditer(window, start):
        if match[0] == b"{":
            depth += 1
        elif match[0] == b"}":
            depth -= 1
            if depth == 0:
                return match.end()
    return 0
