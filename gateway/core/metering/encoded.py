"""Meter an answer that is compressed: decode a copy to read it, pass on what came.

Bytes pass once all that they decode to may: an end that waits in the decoded copy waits in the
compressed bytes as well. Decoding stops at `decoded_bytes_max` in all: what is longer, broken or in a
coding the standard library cannot read is counted by its size. One `feed` decodes a step; `behind` says
that there is more to decode.
"""

from __future__ import annotations

import zlib
from collections import deque

from gateway.core.calls.call import Bounds, Call
from gateway.core.metering.meter import Detail, Meter
from gateway.core.metering.stream import CODED_BYTES, Tail
from gateway.core.model import Usage

STEP_BYTES = 16 << 10  # decoded at once, as much as one read of a plain answer
DECODER_BYTES = 40 << 10  # a window and its tables
_MEMBER_BYTES = 1 << 10  # what the beginning of a member costs, in bytes decoded
_GZIP = 16 + zlib.MAX_WBITS


class EncodedMeter:
    """Decode gzip, of any number of members (RFC 1952, 2.2), or deflate for the meter inside.

    Nothing is left out of a compressed answer.
    """

    __slots__ = (
        "_chunk", "_decoded_bytes", "_decoder", "_gzip", "_inner", "_members", "_started",
        "_tail", "_undecoded", "_waiting", "behind",
    )  # fmt: skip

    def __init__(self, inner: Meter, gzip: bool) -> None:
        self._inner = inner
        self._gzip = gzip
        self._decoder: zlib._Decompress | None = zlib.decompressobj(_GZIP if gzip else zlib.MAX_WBITS)
        self._decoded_bytes = self._members = 0
        # What of the last chunk is still to be decoded, where `behind`.
        self._chunk = self._undecoded = b""
        self.behind = False
        self._started = False
        # What came and has not passed, each with where its decoded bytes end.
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._tail: Tail | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Read a step of a decoded copy; return the bytes that may pass. Fed nothing, it goes on."""
        if chunk:
            self._catch_up()
            self._chunk = self._undecoded = chunk
        if chunk or self.behind:
            self._step()
        if self._tail is not None:
            return self._tail.feed(self._take())
        safe = self._decoded_bytes - self._inner.withheld
        passed: list[bytes] = []
        while self._waiting and self._waiting[0][1] <= safe:
            passed.append(self._waiting.popleft()[0])
        return b"".join(passed)

    def finish(self) -> bytes:
        """The answer is complete; return what waited."""
        self._catch_up()
        self._inner.finish()
        return (b"" if self._tail is None else self._tail.take()) + self._take()

    def whole(self, answer: bytes) -> bytes:
        """Take a complete answer, of which nothing has to wait."""
        self.feed(answer)
        self._catch_up()
        self._inner.finish()
        return answer

    def cut(self) -> bytes:
        """A compressed answer cannot be ended well; it is broken off."""
        return b""

    def fail(self, body: bytes) -> bytes:
        """Nothing can be said in the middle of a compressed answer."""
        return b""

    @property
    def kept(self) -> int:
        """Bytes that are kept of the coded answer and of the decoded copy."""
        return self._inner.kept + sum(len(chunk) for chunk, _ in self._waiting) + DECODER_BYTES

    def slim(self) -> None:
        """Keep no more than is needed to charge."""
        self._inner.slim()

    @property
    def phase(self) -> int:
        """How far the answer inside has come."""
        return self._inner.phase

    @property
    def told(self) -> list[str]:
        """Ids of objects that the answer inside told of."""
        return self._inner.told

    @property
    def detail(self) -> Detail:
        """What the answer inside says beside what is charged."""
        return self._inner.detail

    @property
    def surplus(self) -> bool:
        """True once more came behind the end of the answer inside than is kept."""
        return self._inner.surplus

    @property
    def unread(self) -> bool:
        """Whether nobody can read some of the answer inside."""
        return self._inner.unread

    @property
    def produced(self) -> bool:
        """True once the first content or the first report of use was seen."""
        return self._inner.produced

    @property
    def known(self) -> bool:
        """True once nothing that may still come changes what is charged."""
        return self._inner.known

    def observed(self) -> int:
        """Tokens seen so far."""
        return self._inner.observed()

    def so_far(self) -> Usage:
        """What these are made of."""
        return self._inner.so_far()

    def usage(self) -> Usage:
        """Return what this answer is charged, as far as it came."""
        return self._inner.usage()

    def _catch_up(self) -> None:
        """Decode what is left of the last chunk, all of it."""
        while self.behind:
            self._step()

    def _step(self) -> None:
        self.behind = False
        if self._decoder is None:
            self._unread(self._chunk)
        else:
            try:
                self._decode()
            except zlib.error:
                self._retry_raw(self._chunk)
        if not self.behind:
            self._waiting.append((self._chunk, self._decoded_bytes))

    def _decode(self) -> None:
        """Decode until a step is full or nothing is left."""
        data, left = self._undecoded, STEP_BYTES
        while (decoder := self._decoder) is not None:
            decoded = decoder.decompress(data, left)
            self._started = True
            if decoded:
                left -= len(decoded)
                self._decoded_bytes += len(decoded)
                if self._decoded_bytes > self._inner.bounds.decoded_bytes_max:
                    self._unread(self._chunk)
                    return
                self._inner.feed(decoded)
            data = decoder.unconsumed_tail
            if decoder.eof:
                data = decoder.unused_data
                self._members += 1
                left -= _MEMBER_BYTES
                self._decoder = zlib.decompressobj(_GZIP) if self._gzip else None
                if not data or self._decoder is None:
                    return
            elif not data and left > 0:
                return
            if left <= 0:
                self._undecoded, self.behind = data, True
                return

    def _retry_raw(self, chunk: bytes) -> None:
        """Try `deflate` without its header, as some servers send it; else only count."""
        if self._members:  # padding behind the last member belongs to no answer
            self._decoder = zlib.decompressobj(_GZIP)
            return
        if self._gzip or self._started:
            self._unread(chunk)
            return
        self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)
        self._started = True
        self._undecoded = chunk
        try:
            self._decode()
        except zlib.error:
            self._unread(chunk)

    def _unread(self, chunk: bytes) -> None:
        """Count bytes that cannot be read, and from now on keep the end of the answer by its size."""
        if self._members and not self._gzip:
            return  # what stands behind a deflate stream is none of it
        self._decoder = None
        self._inner.unreadable(len(chunk))
        if self._tail is None:
            self._tail = Tail(CODED_BYTES)

    def _take(self) -> bytes:
        waiting = b"".join(chunk for chunk, _ in self._waiting)
        self._waiting.clear()
        return waiting


class OpaqueMeter(Meter):
    """Count an answer nobody here can read by its size."""

    __slots__ = ("_tail",)

    def __init__(self, call: Call, status: int, bounds: Bounds) -> None:
        Meter.__init__(self, call, status, bounds)
        self._tail = Tail(CODED_BYTES)

    def feed(self, chunk: bytes) -> bytes:
        """Count the bytes and pass them on, but for the last."""
        self.unreadable(len(chunk))
        return self._tail.feed(chunk)

    def finish(self) -> bytes:
        """The answer is complete; return the rest."""
        self.ended = True
        return self._tail.take()
