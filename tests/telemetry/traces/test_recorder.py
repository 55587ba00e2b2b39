"""Which requests are recorded, and at what times their spans are said to have been."""

from __future__ import annotations

import os

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from gateway.core.otel import Tracing
from gateway.core.traces import Parent, Span, SpanKind
from gateway.telemetry.traces import Recorder

TRACE_ID = bytes(15) + b"\1"


class SpanStore:
    """Keeps what is offered."""

    def __init__(self) -> None:
        self.spans: list[bytes] = []

    def offer(self, spans: list[bytes]) -> None:
        self.spans += spans


def recorder(kept: SpanStore, *, follows_parent: bool = True, ratio: float = 1.0) -> Recorder:
    tracing = Tracing(endpoint="http://collector", follows_parent=follows_parent, ratio=ratio)
    return Recorder(tracing, kept.offer, lambda: 100.0, lambda: 1_000_000.0, os.urandom)


@pytest.mark.parametrize("flags", [0, 1])
def test_a_caller_decides_where_that_is_followed(flags: int) -> None:
    parent = Parent(TRACE_ID, b"12345678", flags)
    assert recorder(SpanStore(), ratio=1 - flags).begin(parent).recorded is bool(flags)
    assert recorder(SpanStore(), ratio=1 - flags, follows_parent=False).begin(parent).recorded is not bool(
        flags
    )


def test_a_ratio_of_traces_is_recorded_and_by_their_ids() -> None:
    quarter = recorder(SpanStore(), ratio=0.25)
    recorded = sum(quarter.begin(None).recorded for _ in range(4_000))
    assert 800 < recorded < 1_200
    above = Parent(bytes(8) + b"\x7f" + bytes(7), b"12345678", 0)
    below = Parent(bytes(8) + b"\x1f" + bytes(7), b"12345678", 0)
    strict = recorder(SpanStore(), ratio=0.25, follows_parent=False)
    assert [strict.begin(parent).recorded for parent in (above, below)] == [False, True]


@pytest.mark.parametrize("parent", [None, Parent(TRACE_ID, b"12345678", 1)])
def test_spans_are_in_the_time_of_day_and_know_a_remote_parent(parent: Parent | None) -> None:
    kept = SpanStore()
    trace = recorder(kept).begin(parent)
    whole = Span("whole", SpanKind.SERVER, trace.span_id, trace.parent_id, 90.0, 100.0)
    part = Span("part", SpanKind.CLIENT, trace.reserve_id, trace.span_id, 91.0, 92.0)
    recorder(kept).end(trace, [whole, part])
    read = ScopeSpans.FromString(b"".join(kept.spans)).spans
    assert [span.start_time_unix_nano for span in read] == [999_990_000_000_000, 999_991_000_000_000]
    assert [span.flags for span in read] == [0x301 if parent else 0x101, 0x101]
    assert {span.trace_id for span in read} == {trace.trace_id}
