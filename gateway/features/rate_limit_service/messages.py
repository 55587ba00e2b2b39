"""The messages of Envoy's rate limit service, v3, and of Kuadrant's, as bytes: only fields that are needed.

Source: envoy/service/ratelimit/v3/rls.proto and envoy/extensions/common/ratelimit/v3/ratelimit.proto;
Limitador's kuadrantrls.proto and Kuadrant's RFC 0021.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.telemetry.traces import varint

REQUEST_BYTES_MAX: Final = 64 << 10
DESCRIPTORS_MAX: Final = 32
OK: Final = 1
OVER_LIMIT: Final = 2
_COUNT_MAX: Final = (1 << 32) - 1
_VARINT_BYTES_MAX: Final = 10
_DURATION_S_MAX: Final = 315_576_000_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor: its entries, the hits to add (or to subtract: `gives_back`), and if it has a limit."""

    entries: tuple[tuple[str, str], ...]
    hits: int
    gives_back: bool
    overridden: bool


@dataclass(frozen=True, slots=True)
class RateLimitQuestion:
    """A rate limit request. Reservations also have an `id`, an `amount` and possibly a lifetime."""

    domain: str
    descriptors: tuple[Descriptor, ...]
    id: str = ""
    amount: int = 0
    ttl_s: int | None = None


@dataclass(frozen=True, slots=True)
class DescriptorStatus:
    """The answer for one descriptor: its code, the rest and the seconds to its reset, None if unknown."""

    code: int
    remaining: int | None = None
    reset_s: int | None = None


def read_request(raw: bytes) -> RateLimitQuestion:
    """Parse a `RateLimitRequest`; `ValueError` if the bytes are no such message."""
    domain, raws, hits = "", list[bytes](), 0
    for number, value in _fields(raw):
        if number == 1:
            domain = _text(value)
        elif number == 2:
            raws.append(_message(value))
        elif number == 3:
            hits = _count(value)
    return RateLimitQuestion(domain, tuple([_descriptor(descriptor, hits or 1) for descriptor in raws]))


def read_reserve(raw: bytes) -> RateLimitQuestion:
    """Parse Kuadrant's `ReserveRequest`; `ValueError` if the bytes are no such message."""
    domain, descriptors, more = _read_question(raw)
    length = more.get(4)
    if length is None:
        return RateLimitQuestion(domain, descriptors, amount=_count(more.get(3, 0)))
    numbers = {1: 0, 2: 0} | {at: _count(part) for at, part in _fields(_message(length)) if at in {1, 2}}
    if numbers[1] > _DURATION_S_MAX:  # a negative one is as large
        raise ValueError("a duration is out of bounds")
    return RateLimitQuestion(
        domain, descriptors, amount=_count(more.get(3, 0)), ttl_s=numbers[1] + (numbers[2] > 0)
    )


def read_commit(raw: bytes) -> RateLimitQuestion:
    """Parse Kuadrant's `CommitRequest`; `ValueError` if the bytes are no such message."""
    domain, descriptors, more = _read_question(raw)
    return RateLimitQuestion(domain, descriptors, _text(more.get(3, b"")), _count(more.get(4, 0)))


def _read_question(raw: bytes) -> tuple[str, tuple[Descriptor, ...], dict[int, int | bytes]]:
    """Return the domain and the descriptors of a message, and its other fields by number."""
    domain, descriptors, more = "", list[Descriptor](), dict[int, int | bytes]()
    for number, value in _fields(raw):
        if number == 1:
            domain = _text(value)
        elif number == 2:
            descriptors.append(_descriptor(_message(value), 1))
        else:
            more[number] = value
    return domain, tuple(descriptors), more


def _descriptor(raw: bytes, hits: int) -> Descriptor:
    """Return the descriptor in a protobuf message; `hits` is the default of its amount."""
    entries, gives_back, overridden = list[tuple[str, str]](), False, False
    for number, value in _fields(raw):
        if number == 1:
            texts = {1: "", 2: ""} | {
                at: _text(part) for at, part in _fields(_message(value)) if at in {1, 2}
            }
            entries.append((texts[1], texts[2]))
        elif number == 2:
            overridden = True
        elif number == 3:
            hits = next((_count(part) for at, part in _fields(_message(value)) if at == 1), 0)
        elif number == 4:
            gives_back = _count(value) != 0
    return Descriptor(tuple(entries), hits, gives_back, overridden)


def write_response(
    statuses: Sequence[DescriptorStatus], headers: Iterable[tuple[str, str]] = (), body: bytes = b"",
    code: int | None = None, metadata: Mapping[str, object] | None = None,
) -> bytes:  # fmt: skip
    """Return a `RateLimitResponse`: over the limit if one descriptor is, unless `code` is given.

    Its dynamic `metadata` are texts, and mappings of texts.
    """
    if code is None:
        code = max((status.code for status in statuses), default=OK)
    parts = [_number(1, code)]
    for status in statuses:
        number = _number(1, status.code)
        if status.remaining is not None:
            number += _number(3, min(max(status.remaining, 0), _COUNT_MAX))
        if status.reset_s is not None:
            number += _block(4, _number(1, status.reset_s))
        parts.append(_block(2, number))
    parts += [_block(3, _block(1, name.encode()) + _block(2, value.encode())) for name, value in headers]
    if body:
        parts.append(_block(5, body))
    if metadata:
        parts.append(_block(6, _struct(metadata)))
    return b"".join(parts)


def write_reserved(code: int, id_: str) -> bytes:
    """Return a `ReserveResponse`."""
    return _number(1, code) + (_block(2, id_.encode()) if id_ else b"")


def write_committed(*, released: bool) -> bytes:
    """Return a `CommitResponse`. `released`: the reservation existed and was settled."""
    return _number(1, 1) if released else b""


def _struct(fields: Mapping[str, object]) -> bytes:
    """Return a `google.protobuf.Struct`."""
    blocks = list[bytes]()
    for name, value in fields.items():
        block = _block(5, _struct(value)) if isinstance(value, Mapping) else _block(3, str(value).encode())
        blocks.append(_block(1, _block(1, name.encode()) + _block(2, block)))
    return b"".join(blocks)


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield each field of a message: its number, and an integer or bytes."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(raw, at)
            yield tag >> 3, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if kind == _BYTES:
            size, at = _varint(raw, at)
        if size is None or at + size > len(raw):
            raise ValueError("a field is cut off, or of no known type")
        yield tag >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place of a protobuf message, and the place behind it."""
    value = 0
    for place in range(_VARINT_BYTES_MAX):
        if at + place >= len(raw):
            break
        byte = raw[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number is cut off, or too long")


def _count(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("a number is expected")  # noqa: TRY004  # of a message, not of a program
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a message is expected")  # noqa: TRY004  # as above
    return value


def _text(value: int | bytes) -> str:
    return _message(value).decode("utf-8")  # what is no text is a ValueError


def _number(field: int, value: int) -> bytes:
    return varint(field << 3 | _VARINT) + varint(value)


def _block(field: int, content: bytes) -> bytes:
    return varint(field << 3 | _BYTES) + varint(len(content)) + content
