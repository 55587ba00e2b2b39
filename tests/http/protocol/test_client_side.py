"""A client's side of a connection, without one: every split, every order, every end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.http_limits import HttpLimits
from gateway.errors import MalformedRequest, Refusal
from gateway.http.protocol.framing import (
    BODY,
    BROKEN,
    CLOSING,
    DISCARDING,
    IDLE,
    INCOMING,
    WHOLE,
    IllegalEvent,
)
from gateway.http.protocol.request import ClientSide, cut_head

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKS = b"3\r\nabc\r\n2;e=1\r\nde\r\n0\r\nt: x\r\n\r\n"


def side() -> ClientSide:
    return ClientSide(HttpLimits())


@given(st.lists(st.sampled_from(["none", "length", "chunked"]), min_size=1, max_size=4), st.data())
def test_requests_are_the_same_however_their_bytes_are_cut(kinds: list[str], data: st.DataObject) -> None:
    wire, framing, expected = b"", [], []
    for kind in kinds:
        wire += HEAD + {"none": b"", "length": b"hello", "chunked": CHUNKS}[kind]
        framing.append((5 if kind == "length" else 0, kind == "chunked"))
        expected.append({"none": b"", "length": b"hello", "chunked": b"abcde"}[kind])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    one, at, body, bodies = side(), 0, b"", []
    for cut in [*cuts, len(wire)]:
        body += one.receive(wire[at:cut])
        at = cut
        while True:
            if one.state == IDLE and one.waiting and one.head():
                body = one.request(*framing[len(bodies)])
            elif one.state == WHOLE:
                bodies.append(body)
                body = b""
                one.answered()
            else:
                break
    assert (bodies, one.state, one.waiting) == (expected, IDLE, b"")


@given(st.integers(1, 50), st.integers(0, 60))
def test_a_body_is_whole_by_its_bytes_alone(length: int, sent: int) -> None:
    one = side()
    one.receive(HEAD)
    cut = one.head()
    assert cut is not None
    assert cut == cut_head(HEAD)
    one.request(length, False)
    payload = one.receive(b"x" * sent)
    assert (one.state == WHOLE, payload) == (sent >= length, b"x" * min(sent, length))
    assert one.waiting == b"x" * max(0, sent - length)


def test_every_chunk_up_to_the_last_line_break_is_owed() -> None:
    for cut in range(len(CHUNKS)):
        one = side()
        one.receive(HEAD)
        one.head()
        one.request(0, True)
        one.receive(CHUNKS[:cut])
        assert one.state == BODY
        one.receive(CHUNKS[cut:])
        assert one.state == WHOLE


@pytest.mark.parametrize("at", range(len(CHUNKS)))
def test_a_line_feed_alone_is_refused_with_the_byte_that_shows_it(at: int) -> None:
    if CHUNKS[at : at + 2] != b"\r\n":
        return
    one = side()
    one.receive(HEAD)
    one.head()
    one.request(0, True)
    assert one.receive(CHUNKS[:at]) in (b"", b"abc", b"abcde")
    with pytest.raises(MalformedRequest):
        one.receive(b"\n")
    assert (one.state, one.droppable) == (BROKEN, False)
    assert one.receive(b"GET / HTTP/1.1\r\n\r\n") == one.waiting == b""


def test_what_is_left_of_an_answered_body_is_read_and_is_no_request() -> None:
    one = side()
    one.receive(HEAD)
    one.head()
    one.request(5, False)
    assert one.droppable
    one.answered()
    assert one.state == DISCARDING
    one.receive(b"GET /" + HEAD)
    assert (one.state, one.waiting) == (IDLE, HEAD)


def test_events_out_of_turn_raise() -> None:
    one = side()
    with pytest.raises(IllegalEvent):
        one.answered()
    one.receive(HEAD + b"abc" + HEAD)
    one.head()
    assert one.request(3, False) == b"abc"
    for early in (one.head, one.refuse, lambda: one.request(0, False), lambda: one.request(0, True)):
        with pytest.raises(IllegalEvent):
            early()
    one.answered()
    with pytest.raises(IllegalEvent):
        one.answered()
    one.close()
    assert one.state == CLOSING
    with pytest.raises(IllegalEvent):
        one.head()


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\nhost: x\n\n", b"\x16\x03\x01", b"GET /" + b"a" * 9000, b"\nGET /"]
)
def test_what_never_becomes_a_head_is_refused_as_it_comes(data: bytes) -> None:
    one = side()
    one.receive(data)
    with pytest.raises(Refusal):
        one.head()


def test_every_state_that_is_reached_has_a_row() -> None:
    assert {state for row in INCOMING.values() for state in row.values()} <= INCOMING.keys()
