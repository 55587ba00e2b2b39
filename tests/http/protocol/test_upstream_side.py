"""An upstream's side of a connection, without one: every split, every order, every end."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.http_limits import HttpLimits
from gateway.http.protocol.answer import UpstreamSide
from gateway.http.protocol.framing import (
    ANSWER,
    BODY,
    COMPLETE,
    OUTGOING,
    OWED,
    SENT,
    IllegalEvent,
    Malformed,
)

OPENING = b"POST /x HTTP/1.1\r\nhost: x\r\n"
ANSWERS = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\nt: x\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
)
PARTS = st.lists(st.binary(max_size=30), max_size=6)


def side() -> UpstreamSide:
    return UpstreamSide(HttpLimits())


def fed(one: UpstreamSide, data: bytes, cuts: list[int]) -> bytes:
    """Feed `data` cut at these places; the payload."""
    payload, at = b"", 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        payload += one.receive(data[at:cut])
        at = cut
    return payload


def asked() -> UpstreamSide:
    one = side()
    one.ask(OPENING, b"", False)
    return one


@given(PARTS, st.booleans(), st.integers(0, 200), st.integers(0, 6), st.sampled_from(ANSWERS))
def test_what_is_written_is_one_request_or_the_beginning_of_one_that_is_never_followed(
    parts: list[bytes], chunked: bool, missing: int, answered_after: int, answer: bytes
) -> None:
    """h11 reads what the upstream gets: only what it takes for whole may be followed by another request."""
    one = side()
    body = b"".join(parts)
    length = None if chunked else len(body) + missing
    wire = one.ask_in_parts(OPENING, length, b"", False)
    for number, part in enumerate(parts):
        if number == answered_after:
            one.receive(answer)
        if one.request == OWED:
            wire += one.more(part)
    if one.request == OWED and missing % 2 == 0 and (chunked or missing == 0):
        wire += one.end()
    if one.answering != COMPLETE:
        one.receive(answer)
    assert one.reusable == (one.request == SENT)
    assert _is_whole(wire) or not one.reusable
    if one.reusable:
        assert one.be_ready()
        _is_whole(one.ask(OPENING, b"next", False))
    else:
        assert not one.be_ready()
        with pytest.raises(IllegalEvent):
            one.ask(OPENING, b"next", False)


def _is_whole(wire: bytes) -> bool:
    oracle = h11.Connection(h11.SERVER)
    oracle.receive_data(wire)
    while (event := oracle.next_event()) is not h11.NEED_DATA:
        if isinstance(event, h11.EndOfMessage):
            assert oracle.trailing_data[0] == b""
            return True
    return False


@given(st.integers(0, 40), st.lists(st.integers(0, 20), max_size=5))
def test_no_more_is_sent_than_was_promised_and_no_end_before_it(length: int, sizes: list[int]) -> None:
    one = side()
    one.ask_in_parts(OPENING, length, b"", False)
    sent = 0
    for size in sizes:
        if sent + size > length:
            with pytest.raises(IllegalEvent):
                one.more(b"x" * size)
        else:
            assert one.more(b"x" * size) == b"x" * size
            sent += size
    if sent < length:
        with pytest.raises(IllegalEvent):
            one.end()
        assert one.request == OWED
    else:
        assert (one.end(), one.request) == (b"", SENT)


@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 300), max_size=8), st.binary(max_size=3))
def test_an_answer_is_the_same_however_it_is_cut_and_anything_behind_it_is_surplus(
    answer: bytes, cuts: list[int], behind: bytes
) -> None:
    one = asked()
    payload = fed(one, answer + behind, cuts)
    assert (one.answering, payload) == (COMPLETE, b"hello" if b"hel" in answer else b"")
    assert (one.surplus, one.reusable) == (bool(behind), not behind)


@given(st.sampled_from(ANSWERS), st.integers(0, 300))
def test_an_upstream_that_closes_leaves_nothing_to_use_again(answer: bytes, cut: int) -> None:
    one = asked()
    one.receive(answer[:cut])
    assert not one.close(clean=True)
    assert not one.reusable
    assert (one.answering == COMPLETE) == (cut >= len(answer))


@pytest.mark.parametrize("clean", [False, True])
def test_only_an_answer_without_any_length_ends_with_its_connection(clean: bool) -> None:
    one = asked()
    assert one.receive(b"HTTP/1.1 200 OK\r\n\r\nhel") == b"hel"
    assert one.close(clean) is clean
    assert (one.answering, one.reusable) == (COMPLETE if clean else BODY, False)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nconnection: close\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_whoever_said_close_is_not_asked_again(answer: bytes) -> None:
    one = asked()
    one.receive(answer)
    assert (one.answering, one.reusable) == (COMPLETE, False)


@pytest.mark.parametrize(
    ("status", "fields", "answers_head", "again"),
    [
        (b"200 OK", b"content-length: 5\r\n", True, False),
        (b"200 OK", b"", True, False),
        (b"204 No Content", b"", False, True),
        (b"204 No Content", b"content-length: 0\r\n", False, True),
        (b"204 No Content", b"content-length: 5\r\n", False, False),
        (b"304 Not Modified", b"transfer-encoding: chunked\r\n", False, False),
    ],
)
def test_nobody_is_next_where_a_body_may_still_come(
    status: bytes, fields: bytes, answers_head: bool, again: bool
) -> None:
    one = side()
    one.ask(b"GET / HTTP/1.1\r\n", None, answers_head)
    assert one.receive(b"HTTP/1.1 %b\r\n%b\r\n" % (status, fields)) == b""
    assert (one.answering, one.reusable) == (COMPLETE, again)


def test_bytes_before_any_request_are_surplus() -> None:
    one = side()
    one.receive(b"HTTP/1.1 200 OK\r\n")
    assert one.surplus


def test_a_broken_answer_leaves_nothing_to_use_again() -> None:
    one = asked()
    with pytest.raises(Malformed):
        one.receive(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\nhello")
    assert not one.reusable
    one.give_up()
    with pytest.raises(IllegalEvent):
        one.ask(OPENING, b"", False)


@pytest.mark.parametrize("table", [OUTGOING, ANSWER])
def test_every_state_that_is_reached_has_a_row(table: dict[str, dict[str, str]]) -> None:
    assert {state for row in table.values() for state in row.values()} <= table.keys()
