"""Which span of the caller's a request belongs to, and what its upstream is told."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.traces import IDS_BYTES, Parent, begin_trace, read_parent, read_state, read_usual_line

TRACE, SPAN = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"
VALID = b"00-" + TRACE + b"-" + SPAN + b"-01"
IDS = bytes(range(IDS_BYTES))


def test_a_valid_field_names_the_callers_span() -> None:
    parent = read_parent([b" " + VALID])
    assert parent == Parent(bytes.fromhex(TRACE.decode()), bytes.fromhex(SPAN.decode()), 1)
    assert parent.is_sampled


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    parent = read_parent([b"cc-" + TRACE + b"-" + SPAN + b"-02-what-will-be"])
    assert parent is not None
    assert not parent.is_sampled


@pytest.mark.parametrize(
    "values",
    [
        [],
        [VALID, VALID],
        [b""],
        [b"ff" + VALID[2:]],
        [VALID + b"-more"],
        [VALID.upper()],
        [b"00-" + bytes(32).replace(b"\0", b"0") + b"-" + SPAN + b"-01"],
        [b"00-" + TRACE + b"-0000000000000000-01"],
        [b"00-" + TRACE + SPAN + b"-01"],
        [VALID[:-1]],
        [VALID.replace(b"4bf9", b"4bg9")],
        [VALID + b"\nmore"],
    ],
)
def test_anything_else_names_none(values: list[bytes]) -> None:
    assert read_parent(values) is None


USUAL = re.compile(rb"[Tt]raceparent: ?00-(?!0{32}-)([0-9a-f]{32})-(?!0{16}-)[0-9a-f]{16}-[0-9a-f]{2}")
LINES = [b"traceparent: " + VALID, b"Traceparent:" + VALID, b"traceparent: 00-" + b"0" * 32 + VALID[35:]]


@given(
    st.sampled_from([*LINES, LINES[0][:49] + b"0" * 16 + b"-01"]),
    st.lists(st.tuples(st.integers(0, 67), st.sampled_from(b"0123fgF-: \xff\nT"), st.booleans()), max_size=3),
)
def test_a_usual_line_is_read_as_its_pattern_says(line: bytes, changes: list[tuple[int, int, bool]]) -> None:
    for at, byte, added in changes:
        line = line[:at] + bytes([byte]) + line[at + (not added) :]
    match = USUAL.fullmatch(line)
    assert read_usual_line(line) == ("" if match is None else match[1].decode())


def test_a_recorded_request_is_its_upstreams_parent() -> None:
    parent = read_parent([VALID])
    trace = begin_trace(parent, True, IDS)
    assert (trace.trace_id.hex(), trace.parent_id.hex()) == (TRACE.decode(), SPAN.decode())
    assert trace.line == b"traceparent: 00-%b-%b-01\r\n" % (TRACE, trace.upstream_id.hex().encode())
    ids = {trace.span_id, trace.upstream_id, trace.reserve_id, trace.settle_id, trace.parent_id}
    assert len(ids) == 5


def test_an_unrecorded_request_hands_its_parent_on_as_it_came() -> None:
    assert begin_trace(read_parent([VALID]), False, IDS).line == b"traceparent: " + VALID + b"\r\n"


@pytest.mark.parametrize(("recorded", "flags"), [(True, b"01"), (False, b"00")])
def test_without_a_parent_a_trace_begins_here(recorded: bool, flags: bytes) -> None:
    trace = begin_trace(None, recorded, IDS)
    assert trace.parent_id == b""
    assert trace.line.startswith(b"traceparent: 00-" + IDS[:16].hex().encode())
    assert trace.line.endswith(b"-" + flags + b"\r\n")


def test_whether_ids_are_random_is_passed_on() -> None:
    random = Parent(bytes(15) + b"\1", b"parent_.", 2)
    assert begin_trace(random, True, IDS).line.endswith(b"-03\r\n")


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ([b" vendor=1, foo=bar "], "vendor=1,foo=bar"),
        ([b"a=1", b"tenant@vendor=x y,,b/c=~"], "a=1,tenant@vendor=x y,b/c=~"),
        ([], ""),
        ([b"a"], ""),
        ([b"A=1"], ""),
        ([b"a=1=2"], ""),
        ([b"a=\xc3"], ""),
        ([b"a=" + b"x" * 257], ""),
        ([b",".join([b"a=1"] * 33)], ""),
        ([b"a=" + b"x" * 250, b"b=" + b"y" * 250, b"c=1"], f"a={'x' * 250},b={'y' * 250},c=1"),
        ([b"a=" + b"x" * 250, b"b=" + b"y" * 250, b"c=" + b"z" * 120], f"a={'x' * 250},c={'z' * 120}"),
        ([b"%c=" % at + b"x" * 110 for at in b"abcde"], ",".join(f"{at}={'x' * 110}" for at in "abcd")),
    ],
)
def test_a_state_is_kept_by_whole_members(values: list[bytes], state: str) -> None:
    """W3C Trace Context, 3.3.1."""
    assert read_state(values) == state
    lines = [b"TraceState:" + value for value in values]
    trace = begin_trace(read_parent([VALID], [b"accept: a=1", *lines]), True, IDS)
    assert trace.state == state
    assert begin_trace(None, True, IDS).state == ""
