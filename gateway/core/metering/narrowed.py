"""An answer of which its caller sees a part: a list of models, kept whole, passed at its end."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.calls.call import Bounds, Call
from gateway.core.metering.meter import Meter
from gateway.core.model import Usage
from gateway.errors import UpstreamUnreachable

LISTED_BYTES_MAX = 2 << 20


class NarrowedMeter(Meter):
    """Keep the document until it is whole, then pass what the call lets through of it.

    What is too long to be read, compressed, or no list is not passed: `UpstreamUnreachable` says why. A long
    list is `behind` once it is whole: it is looked through in turns.
    """

    __slots__ = ("_coded", "_kept", "_kept_bytes", "_turns")

    def __init__(self, call: Call, status: int, bounds: Bounds, content_encoding: bytes) -> None:
        Meter.__init__(self, call, status, bounds)
        self._coded = content_encoding.strip().lower() not in {b"", b"identity"}
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._turns: Iterator[bytes] | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Keep the chunk and pass nothing; fed nothing once it is whole, go on."""
        if self._turns is not None:
            return self._go_on(self._turns)
        self._kept_bytes += len(chunk)
        if self._coded or self._kept_bytes > LISTED_BYTES_MAX:
            why = "is compressed unasked" if self._coded else f"has more than {LISTED_BYTES_MAX} bytes"
            raise UpstreamUnreachable(f"The upstream's list of models {why}.")
        self._kept.append(chunk)
        return b""

    def finish(self) -> bytes:
        """The document is whole: return the part to pass on, or nothing where that takes several turns."""
        self.ended = True
        document, self._kept = b"".join(self._kept), []
        narrow = self.call.narrow
        assert narrow is not None
        self._turns = narrow(document)
        return self._go_on(self._turns)

    def _go_on(self, turns: Iterator[bytes]) -> bytes:
        passed = next(turns)
        self.behind = not passed
        return passed

    @property
    def kept(self) -> int:
        """Bytes of the document that are kept."""
        return self._kept_bytes

    @property
    def known(self) -> bool:
        """True: it costs nothing."""
        return True

    def usage(self) -> Usage:
        """Return no use at all."""
        return Usage(units=0)
