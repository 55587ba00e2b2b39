"""Spans as OTLP writes them in Protocol Buffers; nothing is sent here.

Source: opentelemetry-proto 1.x, `trace/v1/trace.proto` and what it refers to. Written by hand,
since these are four messages and the official library costs more than the request it tells of
(docs/internals/figures.md has the figures).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import pack

from gateway.core.calls.trace import SAMPLED, Span, Value

_STATUS_ERROR = b"\x7a\x02\x18\x02"  # field 15: a Status whose field 3, the code, is ERROR
_REMOTE_PARENT = 0x300  # of the flags: whether the parent is remote is known, and it is
_LOCAL_PARENT = 0x100


def encoded_span(trace_id: bytes, span: Span, ahead_s: float, *, remote_parent: bool = False) -> bytes:
    """One span as a field of `ScopeSpans`. `ahead_s` is Unix time less the clock of the span's times."""
    attributes = dict(span.attributes)
    if span.error:
        attributes["error.type"] = span.error
    name = span.name.encode("utf-8", "replace")
    content = b"".join((
        b"\x0a\x10", trace_id,
        b"\x12\x08", span.span_id,
        b"\x22\x08" + span.parent_id if span.parent_id else b"",
        b"\x2a", _size(len(name)), name,
        b"\x30", _size(span.kind),
        pack("<BQBQ", 0x39, _nanoseconds(span.started, ahead_s), 0x41, _nanoseconds(span.ended, ahead_s)),
        *[_block(b"\x4a", _pair(key, value)) for key, value in attributes.items()],
        _STATUS_ERROR if span.error else b"",
        pack("<HI", 0x0185, SAMPLED | (_REMOTE_PARENT if remote_parent else _LOCAL_PARENT)),
    ))  # fmt: skip
    return _block(b"\x12", content)


def encoded_resource(attributes: Mapping[str, Value]) -> bytes:
    """Who the spans are of, as a field of `ResourceSpans`."""
    return _block(b"\x0a", b"".join(_block(b"\x0a", _pair(key, value)) for key, value in attributes.items()))


def encoded_request(resource: bytes, scope: str, version: str, spans: Iterable[bytes]) -> bytes:
    """An `ExportTraceServiceRequest` of encoded spans under one encoded resource."""
    named = _block(b"\x0a", scope.encode()) + _block(b"\x12", version.encode())
    return _block(b"\x0a", resource + _block(b"\x12", _block(b"\x0a", named) + b"".join(spans)))


def _pair(key: str, value: Value) -> bytes:
    if isinstance(value, bool):
        told = b"\x10\x01" if value else b"\x10\x00"
    elif isinstance(value, int):
        told = b"\x18" + _size(value & 0xFFFF_FFFF_FFFF_FFFF)
    elif isinstance(value, float):
        told = pack("<Bd", 0x21, value)
    else:
        told = _block(b"\x0a", value.encode("utf-8", "replace"))
    return _block(b"\x0a", key.encode()) + _block(b"\x12", told)


def _block(tag: bytes, content: bytes) -> bytes:
    return tag + _size(len(content)) + content


def _size(number: int) -> bytes:
    """A varint."""
    if number < 0x80:
        return bytes((number,))
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _nanoseconds(seconds: float, ahead_s: float) -> int:
    return max(0, int((seconds + ahead_s) * 1e9))
