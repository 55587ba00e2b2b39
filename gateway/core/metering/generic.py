"""Any HTTP API: units, not tokens.

One unit an answer, or the amount its upstream states in `x-usage-amount`, or the number a JSON
pointer of the configuration finds in the answer. Bodies pass unread unless a pointer asks: an answer that
is then no document is `unread`, and its client is not given the end of it.
"""

from __future__ import annotations

import msgspec

from gateway.core.calls.call import Bounds, Call
from gateway.core.families.objects_told import told
from gateway.core.metering.long import Shortened
from gateway.core.metering.loose import integer, loose_document
from gateway.core.metering.meter import Meter
from gateway.core.metering.readable import UNREADABLE, decoded
from gateway.core.metering.tail import Tail
from gateway.core.model import Usage

UNITS_MAX = 1_000_000_000
_NO_DOCUMENT = object()


class GenericMeter(Meter):
    """Count units; the body passes unread, through `tail` where its own bytes tell its end."""

    __slots__ = ("_document", "_passed", "_pointer", "_tail", "_units")

    def __init__(self, call: Call, status: int, bounds: Bounds, stated: bytes, tail: Tail | None) -> None:
        Meter.__init__(self, call, status, bounds)
        self._tail = tail
        self._passed = False
        self._units = 1 if 200 <= status < 300 else 0
        self._pointer = ""
        if stated:
            self._take(stated)
        elif call.units_pointer and self._units:
            self._pointer = call.units_pointer
            self._document = Shortened(bounds.kept_bytes_max)

    def feed(self, chunk: bytes) -> bytes:
        """Pass the chunk on."""
        self._passed = True
        if self._pointer:
            self._document.feed(chunk)
        if self._tail is None:
            return chunk
        passed = self._tail.feed(chunk)
        self.withheld, self.surplus = len(self._tail.rest), self._tail.surplus
        return passed

    def whole(self, answer: bytes) -> bytes:
        """Take a complete answer, of which nothing has to wait."""
        self._tail = None
        passed = self.feed(answer)
        self.finish()
        return passed

    def finish(self) -> bytes:
        """Find the units in the document, where they are asked for."""
        self.ended = True
        if self._pointer:
            value = _read(self._document.document)
            self.unread = value is _NO_DOCUMENT and self._passed
            found = integer(_at(value, self._pointer))
            if found is None or found < 0:
                self.marked = True
            else:
                self.reported, self.marked = True, found > UNITS_MAX
                self._units = min(found, UNITS_MAX)
        return b"" if self._tail is None else self._tail.take()

    @property
    def kept(self) -> int:
        """Bytes of the document that are kept."""
        return self._document.kept if self._pointer else 0

    @property
    def produced(self) -> bool:
        """True once some of a good answer passed, or its upstream stated an amount."""
        return self.reported or (200 <= self.status < 300 and (self._passed or self.ended))

    @property
    def known(self) -> bool:
        """True once anything passed, unless the document itself says its units."""
        return self.produced and not self._pointer

    def usage(self) -> Usage:
        """Return the units this answer is charged."""
        units = self._units if self.produced else 0
        return Usage(units=units, reported=self.reported, estimated=self.marked)

    def _take(self, stated: bytes) -> None:
        """Believe a plain number; clamp a huge one; anything else leaves one unit, marked."""
        text = stated.strip()
        if not text.isdigit():
            self.marked = True
            return
        digits = text.lstrip(b"0") or b"0"
        self.marked = len(digits) > len(str(UNITS_MAX)) or int(digits) > UNITS_MAX
        self._units = UNITS_MAX if self.marked else int(digits)
        self.reported = True


class FreeMeter(Meter):
    """Pass an answer that costs nothing; the end of one that may tell of objects waits until it is read."""

    __slots__ = ("_kept", "_kept_bytes", "_tail")

    def __init__(self, call: Call, status: int, bounds: Bounds, tail: Tail | None) -> None:
        Meter.__init__(self, call, status, bounds)
        self._tail = tail if call.keeps and 200 <= status < 300 else None
        self._kept: list[bytes] = []
        self._kept_bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        """Pass the chunk on."""
        if self._tail is None:
            return chunk
        self._kept_bytes += len(chunk)
        if self._kept_bytes <= self.bounds.kept_bytes_max:
            self._kept.append(chunk)
        passed = self._tail.feed(chunk)
        self.surplus = self._tail.surplus
        return passed

    def finish(self) -> bytes:
        """Read what objects the document tells of."""
        self.ended = True
        if self._tail is None:
            return b""
        self.told += told(self.call.family, loose_document(b"".join(self._kept)))
        self._kept = []
        return self._tail.take()

    @property
    def kept(self) -> int:
        """Bytes of the document that are kept."""
        return min(self._kept_bytes, self.bounds.kept_bytes_max)

    @property
    def known(self) -> bool:
        """True: it costs nothing."""
        return True

    def usage(self) -> Usage:
        """Return no use at all."""
        return Usage(units=0)


def _read(document: bytes) -> object:
    try:
        return decoded(msgspec.json.decode, document)
    except UNREADABLE:
        return _NO_DOCUMENT


def _at(value: object, pointer: str) -> object:
    """What a JSON pointer (RFC 6901) finds, None where there is nothing."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value
