"""Meter an answer that is compressed: decode a copy to read it, pass on what came.

Decoding stops at `decoded_bytes_max` in all: what is longer, broken or in a coding the
standard library cannot read is counted by its size.
"""

from __future__ import annotations

import zlib

from gateway.core.call import Bounds, Call
from gateway.core.meter.meter import Meter
from gateway.core.model import Usage

STEP_BYTES = 256 << 10
_GZIP = 16 + zlib.MAX_WBITS


class EncodedMeter:
    """Decode gzip or deflate for the meter inside. Nothing is left out of a compressed answer."""

    __slots__ = ("_decoded_bytes", "_decoder", "_gzip", "_inner", "_started")

    def __init__(self, inner: Meter, gzip: bool) -> None:
        self._inner = inner
        self._gzip = gzip
        self._decoder: zlib._Decompress | None = zlib.decompressobj(_GZIP if gzip else zlib.MAX_WBITS)
        self._decoded_bytes = 0
        self._started = False

    def feed(self, chunk: bytes) -> bytes:
        """Read a decoded copy of the chunk and pass the chunk on."""
        if self._decoder is None:
            self._inner.text_bytes += len(chunk)
            return chunk
        try:
            self._decode(chunk)
        except zlib.error:
            self._retry_raw(chunk)
        return chunk

    def finish(self) -> bytes:
        """The answer is complete."""
        self._inner.finish()
        return b""

    def cut(self) -> bytes:
        """A compressed answer cannot be ended well; it is broken off."""
        return b""

    @property
    def produced(self) -> bool:
        """True once the first content or the first report of use was seen."""
        return self._inner.produced

    def observed(self) -> int:
        """Tokens seen so far."""
        return self._inner.observed()

    def usage(self) -> Usage:
        """Return what this answer is charged, as far as it came."""
        return self._inner.usage()

    def _decode(self, chunk: bytes) -> None:
        data = chunk
        while data and (decoder := self._decoder) is not None:
            decoded = decoder.decompress(data, STEP_BYTES)
            self._started = True
            if decoded:
                self._decoded_bytes += len(decoded)
                if self._decoded_bytes > self._inner.bounds.decoded_bytes_max:
                    self._decoder = None
                    self._inner.text_bytes += len(chunk)
                    return
                self._inner.feed(decoded)
            data = decoder.unconsumed_tail
            if decoder.eof:
                data = decoder.unused_data
                self._decoder = zlib.decompressobj(_GZIP) if self._gzip and data else None

    def _retry_raw(self, chunk: bytes) -> None:
        """Try `deflate` without its header, as some servers send it; else only count."""
        retry = not self._gzip and not self._started
        self._decoder = zlib.decompressobj(-zlib.MAX_WBITS) if retry else None
        if self._decoder is None:
            self._inner.text_bytes += len(chunk)
            return
        self._started = True
        self.feed(chunk)


class OpaqueMeter(Meter):
    """Count an answer nobody here can read by its size."""

    __slots__ = ()

    def __init__(self, call: Call, status: int, bounds: Bounds) -> None:
        Meter.__init__(self, call, status, bounds)

    def feed(self, chunk: bytes) -> bytes:
        """Count the bytes and pass them on."""
        self.text_bytes += len(chunk)
        return chunk
