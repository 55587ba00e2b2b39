"""The chunk decoder and the head readers against other readers of the same bytes."""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.http_limits import HttpLimits
from gateway.core.times import began
from gateway.errors import MalformedRequest
from gateway.http.protocol.answer import read_answer_head
from gateway.http.protocol.framing import (
    LENGTH_DIGITS_MAX,
    SMALL_CHUNK_BYTES,
    ChunkedBody,
    Malformed,
    decimal,
    has_bare_newline,
)
from gateway.http.protocol.request import cut_length, read_request_head
from gateway.http.protocol.request_ids import TAIL_BYTES, RequestIds
from tests.search import examples

LIMITS = HttpLimits()
FEW = HttpLimits(chunk_extension_bytes_max=1024, trailer_bytes_max=1024)
REQUEST = (
    b"POST /v1/x?y=%20 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: a, close\r\nA_b: \t c \r\n\r\n"
)
ANSWER_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nConnection: x\r\n\r\n"
)


def decoder() -> ChunkedBody:
    return ChunkedBody(FEW, 1_000)


def fed(data: bytes, cuts: list[int]) -> tuple[bytes, bytes, bool]:
    """Decode `data` cut at these places: payload, what is left behind it, and whether it is complete."""
    body = decoder()
    payload, at = b"", 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        if body.done:
            break
        payload += body.feed(data[at:cut])
        at = cut
    return payload, body.rest + data[at:], body.done


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.sampled_from([b"", b";a", b';a="b"', b";a=b;c"]), min_size=1, max_size=3),
    st.lists(st.sampled_from([b"x: y\r\n", b"long-er: a b\r\n"]), max_size=2),
    st.binary(max_size=20),
    st.lists(st.integers(0, 500), max_size=12),
)
def test_any_split_of_chunks_gives_the_same_payload_and_end(
    payloads: list[bytes], extensions: list[bytes], trailers: list[bytes], behind: bytes, cuts: list[int]
) -> None:
    wire = b"".join(
        b"%x%b\r\n%b\r\n" % (len(payload), extensions[number % len(extensions)], payload)
        for number, payload in enumerate(payloads)
    )
    wire += b"0\r\n" + b"".join(trailers) + b"\r\n"
    assert fed(wire + behind, cuts) == (b"".join(payloads), behind, True)


def by_h11(data: bytes) -> tuple[bytes, bytes] | None:
    """Payload and rest as h11 sees them; None where it refuses or waits for more."""
    oracle = h11.Connection(h11.SERVER)
    oracle.receive_data(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + data)
    payload = b""
    try:
        while True:
            event = oracle.next_event()
            if isinstance(event, h11.Data):
                payload += event.data
            elif isinstance(event, h11.EndOfMessage):
                return payload, oracle.trailing_data[0]
            elif event is h11.NEED_DATA:
                return None
    except h11.RemoteProtocolError:
        return None


_ALPHABET = st.sampled_from(
    [b"0", b"5", b"a", b"F", b"\r\n", b"\r", b"\n", b";", b" ", b"x:y", b"hello", b"\x00"]
)


@settings(max_examples=examples(1500))
@given(st.lists(_ALPHABET, max_size=12).map(b"".join))
def test_what_is_taken_for_a_whole_body_h11_takes_for_the_same(data: bytes) -> None:
    try:
        payload, rest, done = fed(data, [])
    except Malformed:
        return
    if done:
        assert by_h11(data) == (payload, rest)


_ADDED = (b"", b"\r\n", b"\r", b"\n", b" ", b"\t", b"\x00", b":", b"A", b"\x80")
_MUTATION = st.tuples(st.integers(0, 200), st.integers(0, 3), st.sampled_from(_ADDED))


def mutated(data: bytes, mutations: list[tuple[int, int, bytes]]) -> bytes:
    for at, removed, added in mutations:
        place = at % len(data)
        data = data[:place] + added + data[place + removed :]
    return data


@settings(max_examples=examples(1500))
@given(st.lists(_MUTATION, max_size=3))
def test_an_accepted_request_head_reads_the_same_to_h11(mutations: list[tuple[int, int, bytes]]) -> None:
    head = mutated(REQUEST[:-4], mutations) + b"\r\n\r\n"
    if head.find(b"\r\n\r\n") != len(head) - 4:
        return
    rest, length = cut_length(head)
    try:
        read = read_request_head(rest, LIMITS)
    except MalformedRequest:
        return
    if length >= 0 and (read.length is not None or read.chunked):
        return  # refused by the connection
    oracle = h11.Connection(h11.SERVER)
    oracle.receive_data(head)
    event = oracle.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (read.method, read.path + read.query)
    theirs = [(name, value) for name, value in event.headers if length < 0 or name != b"content-length"]
    ours = [(kind.lower, line.partition(b":")[2].strip(b" \t")) for kind, line in read.fields]
    assert theirs == ours
    stated = [int(value) for name, value in event.headers if name == b"content-length"]
    framed = length if length >= 0 else read.length
    assert stated == ([] if framed is None else [framed])


@settings(max_examples=examples(1500))
@given(st.lists(_MUTATION, max_size=3))
def test_an_accepted_answer_head_reads_the_same_to_h11(mutations: list[tuple[int, int, bytes]]) -> None:
    head = mutated(ANSWER_HEAD[:-4], mutations) + b"\r\n\r\n"
    if head.find(b"\r\n\r\n") != len(head) - 4:
        return
    try:
        read = read_answer_head(head)
    except Malformed:
        return
    oracle = h11.Connection(h11.CLIENT)
    oracle.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    oracle.send(h11.EndOfMessage())
    oracle.receive_data(head)
    event = oracle.next_event()
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    assert event.status_code == read.status
    if isinstance(event, h11.Response):
        stated = {int(value) for name, value in event.headers if name == b"content-length"}
        assert stated == ({read.length} if read.length is not None else set())


def test_extensions_and_trailers_are_bounded_in_all() -> None:
    extended = (b"1;" + b"e" * 200 + b"\r\nx\r\n") * 20
    trailed = b"0\r\n" + (b"a: " + b"b" * 200 + b"\r\n") * 20
    for wire in (extended, trailed):
        with pytest.raises(Malformed):
            decoder().feed(wire)


def test_a_frame_without_end_is_bounded() -> None:
    for wire in (b"0" * 300, b"5;" + b"a" * 300, b"0\r\na" + b"b" * 300):
        with pytest.raises(Malformed):
            decoder().feed(wire)


def test_bare_newlines_are_seen() -> None:
    assert has_bare_newline(b"a\nb")
    assert not has_bare_newline(b"a\r\nb\r")


def test_only_a_plain_length_is_cut_out() -> None:
    for spelling in (
        b"content-length : 3",
        b"content-length: 3 ",
        b"CONTENT-LENGTH: 3",
        b"content-length: +3",
    ):
        head = b"POST / HTTP/1.1\r\nhost: x\r\n" + spelling + b"\r\n\r\n"
        assert cut_length(head) == (head, -1)
    assert cut_length(REQUEST)[1] == 3


def test_request_ids_are_uuids_and_never_the_same() -> None:
    drawn = iter(range(1, 10**9))
    ids = RequestIds(
        lambda count: bytes(next(drawn) * 31 % 256 for _ in range(count)), lambda: 1_790_000_000.5
    )
    given_out = [ids.next_id(0.0) for _ in range(500)]
    assert len(set(given_out)) == 500
    for text in given_out:
        assert str(uuid.UUID(text)) == text
        assert uuid.UUID(text).version == 7
        assert uuid.UUID(text).int >> 80 == 1_790_000_000_500
        assert uuid.UUID(text).variant == uuid.RFC_4122


def test_as_many_request_ids_are_drawn_as_are_needed() -> None:
    sizes: list[int] = []

    def drawn(size: int) -> bytes:
        sizes.append((size - 4) // TAIL_BYTES)
        return os.urandom(size)

    ids = RequestIds(drawn, lambda: 1_790_000_000.0)
    for _ in range(8 + 16 + 32 + 64 + 64):
        ids.next_id(0.0)
    assert sizes == [8, 16, 32, 64, 64]
    for second in (2.0, 4.0, 6.0, 8.0, 10.0, 12.0):
        ids.next_id(second)
    assert sizes[5:] == [64, 32, 16, 8, 4, 4]


def test_request_ids_order_by_the_second_they_were_given_in() -> None:
    at = [1_790_000_000.0]
    ids = RequestIds(os.urandom, lambda: at[0])
    given_out = []
    for second in range(1, 40):
        given_out += [ids.next_id(at[0]) for _ in range(3)]
        at[0] += 1.5
        assert began(given_out[-1]) == datetime.fromtimestamp(at[0] - 1.5, UTC), second
    by_second = [given_out[start : start + 3] for start in range(0, len(given_out), 3)]
    assert [sorted(some) for some in by_second] == [sorted(given_out)[n : n + 3] for n in range(0, 117, 3)]
    assert began(str(uuid.uuid4())) is None
    assert began("ffffffff-ffff-7fff-8fff-ffffffffffff") is None


@given(
    st.text("0123456789", max_size=17).map(str.encode) | st.text("09/:+- _x\0", max_size=4).map(str.encode)
)
def test_a_length_is_decimal_digits_alone_and_few(digits: bytes) -> None:
    few = digits.isdigit() and len(digits) <= LENGTH_DIGITS_MAX
    assert decimal(digits) == (int(digits) if few else -1)


def test_too_many_small_chunks_are_refused_and_larger_ones_never() -> None:
    small = ChunkedBody(FEW, 10)
    assert small.feed(b"1\r\nx\r\n" * 10) == b"x" * 10
    with pytest.raises(Malformed, match="small chunks"):
        small.feed(b"1\r\nx\r\n")
    large = ChunkedBody(FEW, 10)
    for _ in range(100):
        large.feed(b"40\r\n%b\r\n" % (b"x" * SMALL_CHUNK_BYTES))
    large.feed(b"280\r\n%b\r\n" % (b"x" * 10 * SMALL_CHUNK_BYTES))
    large.feed(b"1\r\nx\r\n" * 18 + b"0\r\n\r\n")
    assert large.done


@pytest.mark.parametrize("payload", [b"x", b"\r\n\r\n", b"5\r\nx\r\n", b"y" * 4096])
@pytest.mark.parametrize(
    "line", ["%x", "%X", "0%x", "0000000%x", "00000000%x", "%x;a=b", "%x ", "-%x", "1%x"]
)
def test_a_chunk_that_comes_alone_is_read_as_one_that_comes_in_parts(line: str, payload: bytes) -> None:
    for end in (b"\r\n", b"\n\n", b"\rx", b"\r\n0\r\n\r\n"):
        data = (line % len(payload)).encode() + b"\r\n" + payload + end
        assert told(data, len(data)) == told(data, 1)


def told(data: bytes, size: int) -> object:
    """What comes of data in parts of a size, before more and after it."""
    body, found = ChunkedBody(FEW, 2), b""
    try:
        for part in (*[data[at : at + size] for at in range(0, len(data), size)], b"0\r\n\r\n"):
            found += b"" if body.done else body.feed(part)
    except Malformed:
        return None
    return found, body.done
