"""Any HTTP API: units, not tokens.

One unit an answer, or the amount its upstream states in `x-usage-amount`.
"""

from __future__ import annotations

from gateway.core.call import Bounds, Call
from gateway.core.meter.meter import Meter
from gateway.core.model import Usage

UNITS_MAX = 1_000_000_000


class GenericMeter(Meter):
    """Count units; the body passes unread."""

    __slots__ = ("_passed", "_units")

    def __init__(self, call: Call, status: int, bounds: Bounds, stated: bytes | None) -> None:
        Meter.__init__(self, call, status, bounds)
        self._passed = False
        self._units = 1 if 200 <= status < 300 else 0
        if stated is not None:
            self._take(stated)

    def feed(self, chunk: bytes) -> bytes:
        """Pass the chunk on."""
        self._passed = True
        return chunk

    @property
    def produced(self) -> bool:
        """True once some of a good answer passed, or its upstream stated an amount."""
        return self.reported or (200 <= self.status < 300 and (self._passed or self.ended))

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
