"""What an answer used, by API family. `make_meter` chooses; the meters count."""

from __future__ import annotations

from typing import Protocol

from gateway.core.calls.call import DEFAULT_BOUNDS, Bounds, Call
from gateway.core.families.family import Shape
from gateway.core.families.registry import SHAPES
from gateway.core.metering.detail import Detail
from gateway.core.metering.encoded import EncodedMeter, OpaqueMeter
from gateway.core.metering.generic import FreeMeter, GenericMeter
from gateway.core.metering.meter import Meter
from gateway.core.metering.narrowed import NarrowedMeter
from gateway.core.metering.stream import StreamMeter
from gateway.core.metering.tail import CODED_BYTES, Tail
from gateway.core.metering.whole import WholeMeter
from gateway.core.model import Usage

__all__ = ["AnswerMeter", "make_meter"]


class AnswerMeter(Protocol):
    """What the data plane needs of a meter."""

    @property
    def produced(self) -> bool:
        """True once the first content or the first report of use was seen."""

    @property
    def known(self) -> bool:
        """True once nothing that may still come changes what is charged."""

    @property
    def phase(self) -> int:
        """OPEN while more is to come; else the answer has said that it is over."""

    @property
    def told(self) -> list[str]:
        """Ids of objects the upstream keeps, as far as the answer told of them."""

    @property
    def detail(self) -> Detail:
        """What the answer says of itself beside what is charged, as far as it came."""

    @property
    def surplus(self) -> bool:
        """True once more came behind the end of the answer than is kept."""

    @property
    def unread(self) -> bool:
        """True where nobody can read some of it."""

    @property
    def kept(self) -> int:
        """Bytes of the answer that are kept in memory."""

    def slim(self) -> None:
        """Keep no more than is needed to charge: memory is short."""

    @property
    def behind(self) -> bool:
        """True where more is to be done with what was fed: feed nothing, at one's turn."""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the answer; return those to pass on now.

        By what is returned nobody can know that the answer is complete.
        """

    def finish(self) -> bytes:
        """The answer is complete; return what is left to pass on, but for that of which it is `behind`.

        Not called for a broken one.
        """

    def whole(self, answer: bytes) -> bytes:
        """Take an answer that is complete already, in place of `feed` and `finish`."""

    def cut(self) -> bytes:
        """Return bytes that end the answer here; empty where it cannot be ended at this byte."""

    def fail(self, body: bytes) -> bytes:
        """Return bytes that say a refusal's body in the middle of the answer; empty where it cannot."""

    def observed(self) -> int:
        """Tokens seen so far, zero before anything was produced."""

    def so_far(self) -> Usage:
        """What these tokens are, as far as it is told."""

    def usage(self) -> Usage:
        """Return what this answer is charged, as far as it came."""


_CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate"})


def make_meter(
    call: Call,
    status: int,
    content_type: bytes = b"",
    content_encoding: bytes = b"",
    bounds: Bounds = DEFAULT_BOUNDS,
    *,
    usage_amount: bytes = b"",
) -> AnswerMeter:
    """Choose the meter for one answer by the call and the answer's head.

    `content_type`, `content_encoding` and `usage_amount` (the value of `x-usage-amount`) are
    field values as they came, empty where absent. Feed it the body without its transfer
    coding; call `finish` only where the answer came to its proper end.
    """
    shape = SHAPES.get(call.meter)
    if shape is None:
        if call.narrow is not None and 200 <= status < 300:
            return NarrowedMeter(call, status, bounds, content_encoding)
        if call.meter == "generic":
            coding = content_encoding.strip().lower()
            if call.units_pointer and coding in _CODINGS:
                decoded = GenericMeter(call, status, bounds, usage_amount, _tail(content_type, b""))
                return EncodedMeter(decoded, coding != b"deflate")
            return GenericMeter(call, status, bounds, usage_amount, _tail(content_type, content_encoding))
        return FreeMeter(call, status, bounds, _tail(content_type, content_encoding) if call.keeps else None)
    coding = content_encoding.strip().lower() if content_encoding else b""
    if not coding or coding == b"identity":
        return _plain(call, status, content_type, bounds, shape)
    if coding in _CODINGS:
        return EncodedMeter(_plain(call, status, content_type, bounds, shape), coding != b"deflate")
    return OpaqueMeter(call, status, bounds)


def _tail(content_type: bytes, content_encoding: bytes) -> Tail | None:
    """How an answer nobody here reads tells its end: a document by itself, all else by its framing."""
    media = content_type.partition(b";")[0].strip().lower()
    if media != b"application/json" and not media.endswith(b"+json"):
        return None
    return Tail(CODED_BYTES if content_encoding.strip().lower() not in {b"", b"identity"} else 0)


def _plain(call: Call, status: int, content_type: bytes, bounds: Bounds, shape: Shape) -> Meter:
    dialect = shape.dialect
    if content_type == b"application/json" and not call.streamed:
        return WholeMeter(call, status, bounds, dialect)
    media = content_type.partition(b";")[0].strip().lower()
    if media == b"text/event-stream":
        return StreamMeter(call, status, bounds, dialect)
    if shape.unframed is not None and 200 <= status < 300:
        return shape.unframed(call, status, bounds)
    if call.streamed and 200 <= status < 300 and media != b"application/json":
        return StreamMeter(call, status, bounds, dialect)
    return WholeMeter(call, status, bounds, dialect)
