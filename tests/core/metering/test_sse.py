"""The same events come out however the stream is split, and every byte comes out once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.metering.stream import Splitter, data_of


def events_of(stream: bytes, cuts: list[int]) -> tuple[list[bytes], bytes]:
    splitter = Splitter()
    events: list[bytes] = []
    places = [0, *sorted(cuts), len(stream)]
    for start, end in pairwise(places):
        events += splitter.feed(stream[start:end])
    return events, splitter.take()


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_events_end_at_an_empty_line(end: bytes) -> None:
    stream = end.join(
        [b": hello", b"", b"data: 1", b"data: 2", b"id: 3", b"", b"event: x", b"data:4", b"", b""]
    )
    events, rest = events_of(stream, [])
    assert [data_of(event) for event in events] == [b"", b"1\n2", b"4"]
    assert rest == b""
    assert b"".join(events) == stream


def test_events_may_end_in_cr() -> None:
    events, rest = events_of(b"data: 1\r\rdata: 2\r\rdata: 3\r\r", [])
    assert [data_of(event) for event in [*events, rest]] == [b"1", b"2", b"3"]


def test_a_mix_of_line_ends() -> None:
    events, _ = events_of(b"data: 1\r\n\ndata: 2\n\r\ndata: 3\r\r\ndata: 4\n\n", [])
    assert [data_of(event) for event in events] == [b"1", b"2", b"3", b"4"]


def test_a_bom_is_no_part_of_the_data() -> None:
    assert data_of(b"\xef\xbb\xbfdata: 1\n\n") == b"1"


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data\n\n", b""),
        (b"data: x\ndata\n\n", b"x\n"),
        (b"database: x\n\n", b""),
        (b": data: x\n\n", b""),
        (b"event: data\n\n", b""),
        (b"data: x\r\n\r\n", b"x"),
        (b"data: x", b"x"),
        (b"data: a\x0bb\x0c\x85\n\n", b"a\x0bb\x0c\x85"),
        ("data: a\u2028b\n\n".encode(), "a\u2028b".encode()),
        (b"data: [DONE]\n\n", b"[DONE]"),
    ],
)
def test_data_of(event: bytes, data: bytes) -> None:
    assert data_of(event) == data


def said(events: list[bytes]) -> list[bytes]:
    """The data of those that have any: where empty lines and comments go is a matter of the split."""
    return [data_of(event) for event in events if b"data" in event]


def test_empty_lines_and_comments_are_one_event() -> None:
    idle = b"\n" * 100_000 + b":\r\n: x\r" * 10_000
    assert events_of(b"data: 1\n\n" + idle + b"data: 2\n\n", []) == (
        [b"data: 1\n\n", idle, b"data: 2\n\n"],
        b"",
    )
    assert len(events_of(idle + b"data: 2\n\n", [])[0]) == 3


LINES = st.sampled_from([b"data: x", b"data: y\xe2\x80\xa8", b"", b": c", b"event: z", b"data"])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.data())
def test_any_split_gives_the_same_events(lines: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    stream = b"".join(line + end for line, end in lines)
    whole, rest = events_of(stream, [])
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    for places in (cuts, list(range(len(stream)))):
        events, left = events_of(stream, places)
        assert b"".join([*events, left]) == stream
        assert said([*events, left]) == said([*whole, rest])
    assert b"".join([*whole, rest]) == stream


def test_a_long_event_is_scanned_once_and_can_be_given_up() -> None:
    splitter = Splitter()
    for _ in range(1000):
        assert splitter.feed(b"data: " + b"x" * 100) == []
    assert len(splitter.take()) == 106_000
    assert splitter.feed(b"data: 1\n\n") == [b"data: 1\n\n"]
