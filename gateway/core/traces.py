"""Types of a trace, and the header field that passes it on (W3C Trace Context).

Ids are raw bytes: 16 of a trace, 8 of a span. Times are seconds of the worker's monotonic clock. Nothing here
knows the collector of traces, or the transport to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

FIELD = b"traceparent"
STATE_FIELD = b"tracestate"
IDS_BYTES = 16 + 4 * 8
# Most characters of all members of a `tracestate`, and most members: W3C Trace Context, 3.3.1.
STATE_CHARACTERS_MAX, STATE_MEMBERS_MAX, STATE_MEMBER_MAX = 512, 32, 128
SAMPLED, RANDOM = 1, 2

_FIELD = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
# A vendor's key and its value, as W3C Trace Context, 3.3.1.3, spells them.
_MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16
# The usual beginnings of the header line; two ids and flags follow.
_USUAL_OPENINGS = frozenset(
    {b"traceparent: 00-", b"Traceparent: 00-", b"traceparent:00-", b"Traceparent:00-"}
)
_NAME_ENDS = b"raceparent:"  # after a `t` of either case
_USUAL_REST_BYTES = 32 + 1 + 16 + 1 + 2
_DIGITS = b"0123456789abcdef"
_DASH = ord("-")


# The value of a span's attribute.
Value = str | int | float | bool


class Parent(NamedTuple):
    """The caller's span to which a request belongs, and its `tracestate` in `state`, empty for none."""

    trace_id: bytes
    span_id: bytes
    flags: int
    state: str = ""

    @property
    def is_sampled(self) -> bool:
        """Whether the caller records its span."""
        return bool(self.flags & SAMPLED)


class SpanKind(IntEnum):
    """The role of a span; the numbers are OpenTelemetry's."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


@dataclass(slots=True)
class Span:
    """One step of a request, from `started` to `ended`. `error` is the failure in a word, empty for none."""

    name: str
    kind: SpanKind
    span_id: bytes
    parent_id: bytes
    started: float
    ended: float
    attributes: dict[str, Value] = field(default_factory=dict)
    error: str = ""


@dataclass(slots=True)
class Trace:
    """The trace of one request: the ids of its spans, and the results of its steps so far.

    `line` is the header line for its upstream, `state` the caller's `tracestate`. A trace that is not
    `recorded` has no spans. `children` are finished steps, `facts` attributes of the request as a whole.
    """

    trace_id: bytes
    parent_id: bytes
    span_id: bytes
    upstream_id: bytes
    reserve_id: bytes
    settle_id: bytes
    recorded: bool
    line: bytes
    state: str = ""
    children: list[Span] = field(default_factory=list)
    facts: dict[str, Value] = field(default_factory=dict)


def read_parent(values: list[bytes], lines: Sequence[bytes] = ()) -> Parent | None:
    """Return the caller's span from the values of `traceparent` fields; None unless exactly one is valid.

    `lines` are the header lines of the request, among them its `tracestate`.
    Source: W3C Trace Context, 3.2. A version above 00 may have additional text at its end.
    """
    match = _match(values)
    if match is None:
        return None
    trace_id, span_id = bytes.fromhex(match[2].decode()), bytes.fromhex(match[3].decode())
    fields = [line.partition(b":") for line in lines]
    state = read_state([value for name, _, value in fields if name.lower() == STATE_FIELD])
    return Parent(trace_id, span_id, int(match[4], 16) & (SAMPLED | RANDOM), state)


def read_state(values: Sequence[bytes]) -> str:
    """Return the members of all `tracestate` fields as one; empty if one of them is malformed.

    Beyond `STATE_CHARACTERS_MAX` the last members are dropped (W3C Trace Context, 3.3.1.5).
    """
    members = [member.strip(" \t") for member in b",".join(values).decode("latin-1").split(",")]
    members = [member for member in members if member]
    if len(members) > STATE_MEMBERS_MAX or not all(map(_MEMBER.fullmatch, members)):
        return ""
    while len(state := ",".join(members)) > STATE_CHARACTERS_MAX:
        long = [at for at, member in enumerate(members) if len(member) > STATE_MEMBER_MAX]
        del members[long[-1] if long else -1]
    return state


def read_trace_id(values: list[bytes]) -> str:
    """Return the caller's trace id in hex from the values of `traceparent` fields.

    Return an empty text unless exactly one value is valid.
    """
    match = _match(values)
    return "" if match is None else match[2].decode()


def read_usual_line(line: bytes) -> str:
    """Return the trace id of a header line that is a `traceparent` in the usual form; else an empty text."""
    at = len(line) - _USUAL_REST_BYTES
    if at < 0 or line[:at] not in _USUAL_OPENINGS:
        return ""
    rest = line[at:]
    if rest.translate(None, _DIGITS) != b"--" or rest[32] != _DASH or rest[49] != _DASH:
        return ""
    trace_id = rest[:32]
    return "" if trace_id == _NO_TRACE or rest[33:49] == _NO_SPAN else trace_id.decode()


def cut_usual_line(head: bytes) -> tuple[bytes, bytes, str]:
    """Cut the first `traceparent` line in the usual form out of a request's header lines.

    Return the remaining head, the line, and its trace id. Without such a line the head is unchanged, and
    the others are empty.
    """
    at = head.find(_NAME_ENDS)
    while at >= 0:
        if head[at - 3 : at - 1] == b"\r\n":
            end = head.find(b"\r\n", at)
            line = head[at - 1 : end]
            trace_id = read_usual_line(line)
            if trace_id:
                return head[: at - 3] + head[end:], line, trace_id
        at = head.find(_NAME_ENDS, at + 1)
    return head, b"", ""


def _match(values: list[bytes]) -> re.Match[bytes] | None:
    match = _FIELD.fullmatch(values[0].strip()) if len(values) == 1 else None
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5]):
        return None
    return None if match[2] == _NO_TRACE or match[3] == _NO_SPAN else match


def begin_trace(parent: Parent | None, recorded: bool, ids: bytes) -> Trace:
    """Return the trace of one request; `ids` are `IDS_BYTES` random bytes.

    A request that is not recorded passes its caller's span on unchanged.
    """
    trace_id, parent_id, passed_id, flags = ids[:16], b"", ids[24:32], 0
    if parent is not None:
        trace_id, parent_id = parent.trace_id, parent.span_id
        flags = parent.flags & RANDOM
        if not recorded:
            passed_id, flags = parent.span_id, parent.flags
    if recorded:
        flags |= SAMPLED
    line = b"traceparent: 00-%b-%b-%02x\r\n" % (trace_id.hex().encode(), passed_id.hex().encode(), flags)
    state = "" if parent is None else parent.state
    return Trace(trace_id, parent_id, ids[16:24], ids[24:32], ids[32:40], ids[40:48], recorded, line, state)
