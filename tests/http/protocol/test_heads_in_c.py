"""What C makes of heads is what Python does, which is the definition, or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.families import header_fields
from gateway.core.http_limits import HttpLimits
from gateway.http.protocol import answer, request
from gateway.http.protocol.answer import AnswerHead, UpstreamSide
from gateway.http.protocol.framing import IDLE, Malformed
from gateway.http.protocol.request import ClientSide, HeadCut, cut_head
from tests import extensions
from tests.http.protocol.test_framing import mutated
from tests.search import examples
from tests.tree import ROOT

Cut = Callable[[bytes, int], HeadCut | None]
SOURCE = ROOT / "gateway" / "http" / "protocol" / "_heads.c"
MOST = 4_000
TRACE = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LINES = [
    b"Host: gateway", b"Content-Type: application/json", b"Content-Length: 17", b"content-length: 3",
    b"Content-Length: +1", b"CONTENT-LENGTH: 5", b"content-length: " + b"9" * 16,
    b"Authorization: Bearer tk_x", b"authorization:", b"authorization", b"AUTHORIZATION : x",
    b"X-Api-Key: k", b"api-key: k", b"Api_Key: k",
    b"x-goog-api-key: k", b"Sec-WebSocket-Protocol: a, b", b"x-tollkeeper-user: ann",
    b"X-Tollkeeper-Metadata: {}", b"x-tollkeeper-units: 3", b"X-TOLLKEEPER-UNITS:3",
    b"x-tollkeeper-unitsx: 3",
    b"x-tollkeeper-", b"x-tollkeeper-:", b"x_tollkeeper_user: x", TRACE, TRACE.replace(b": ", b":"),
    TRACE.replace(b"t", b"T", 1), TRACE.replace(b"af", b"AF"), TRACE.replace(b"00-", b"01-", 1), TRACE + b" ",
    TRACE[:-1], TRACE[:-2] + b"00", b"tracestate: a=b", b"x: traceparent: 00-", b" folded", b"x-a: \r",
    b"x: \xff",
]  # fmt: skip


ANSWER_LINES = [
    b"Server: nginx", b"Date: Fri, 27 Nov 2026 15:00:00 GMT", b"Content-Type: application/json",
    b"content-type:", b"Content-Length: 17", b"content-length:\t5 ", b"content-length: x",
    b"content-length: " + b"9" * 16, b"Connection: keep-alive", b"connection: close", b"connection: x-id",
    b"Transfer-Encoding: Chunked", b"transfer-encoding: gzip", b"x-request-id: a", b"request-id: b",
    b"x-usage-amount: 3", b"content-encoding: gzip", b"x-ratelimit-limit-requests: 3",
    b"anthropic-ratelimit-tokens-limit: 4", b"x-ratelimit", b"X-RateLimit-: ", b"x-tollkeeper-reason: x",
    b"RateLimit: x", b"ratelimit-policy: y", b"te: x", b"upgrade: h2c", b"keep-alive: 5",
    b"mcp-session-id: m", b"x-goog-upload-url: http://x", b"set-cookie: a=b; c", b"alt-svc: h3",
    b"x-id: 7", b"x y: 1", b": 1", b"x: \x7f", b"x: \x01", b"x: " + b"\xff" * 20,
    b"x: " + b"a" * 20 + b"\x00" + b"b" * 20,
    b" fold", b"x-id : 1", b"very'odd|name~: " + b"\t" * 17,
]  # fmt: skip
STATUS_LINES = [
    b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.0 200 OK",
    b"HTTP/1.1 204 No", b"HTTP/1.1 429 Too", b"HTTP/1.1 529 No", b"HTTP/1.1 500 \xff\t", b"HTTP/1.1 100 Go",
    b"HTTP/1.1 101 Up", b"HTTP/1.1 099 x", b"HTTP/1.1 200\tOK", b"http/1.1 200 OK", b"HTTP/1.1 999 x",
]  # fmt: skip


def built(flags: str = "") -> Any:
    here: Any = extensions.built(SOURCE, flags)
    here.know_credentials(tuple(header_fields.CREDENTIAL_FIELDS))
    here.know_fields(answer._FIELDS, answer._PREFIXES)
    return here


@pytest.fixture(scope="module", params=["", "-DWITHOUT_SSE2"], ids=["by 16", "by 1"])
def heads(request: pytest.FixtureRequest) -> Any:
    return built(request.param)


@pytest.fixture(scope="module")
def cut() -> Cut:
    found: Cut = built().cut_head
    return found


def test_kinds_and_maxima_are_those_of_python() -> None:
    text = SOURCE.read_text(encoding="utf-8")
    said = dict(re.findall(r"^#define (\w+) (\S+)$", text, re.MULTILINE))
    assert int(said["CUT_LINES_MAX"]) == request.CUT_LINES_MAX
    assert int(said["LENGTH_DIGITS_MAX"]) == request.LENGTH_DIGITS_MAX
    assert said["OURS"] == f'"{header_fields.OURS_PREFIX.decode()}"'
    assert said["UNITS"] == f'"{header_fields.UNITS_FIELD.decode()}"'
    kinds = re.search(r"enum \{\s*PASS,(.*?)KINDS", text, re.DOTALL)
    assert kinds is not None
    names = ["PASS", *re.findall(r"\w+", kinds[1])]
    assert [getattr(answer, name) for name in names] == list(range(len(names)))
    assert min(answer.SESSION, answer.ADDRESS) >= len(names)


def test_no_more_names_are_known_than_there_is_room_for(heads: Any) -> None:
    try:
        for wrong in ((b"x" * 65,), (b"",), ("x",), tuple(b"x-%d" % number for number in range(65))):
            with pytest.raises(ValueError, match="names"):
                heads.know_credentials(wrong)
            with pytest.raises(ValueError, match="names"):
                heads.know_fields(dict.fromkeys(wrong, 1), {})
    finally:
        heads.know_credentials(tuple(header_fields.CREDENTIAL_FIELDS))
        heads.know_fields(answer._FIELDS, answer._PREFIXES)


@settings(max_examples=examples(500))
@given(
    st.lists(st.sampled_from(LINES), max_size=20),
    st.lists(st.tuples(st.integers(0, 1_000), st.integers(0, 2), st.binary(max_size=2)), max_size=3),
    st.binary(max_size=40),
)
def test_a_head_is_cut_as_python_does(
    cut: Cut, lines: list[bytes], mutations: list[tuple[int, int, bytes]], behind: bytes
) -> None:
    head = mutated(b"\r\n".join([b"POST / HTTP/1.1", *lines]), mutations) + b"\r\n\r\n"
    end = head.find(b"\r\n\r\n") + 4
    found = cut(head + behind, MOST)
    if found is not None:
        assert found == cut_head(head[:end])
    elif not mutations:  # what is left to Python
        plain = sum(line.startswith((b"Content-Length: ", b"content-length: ")) for line in lines)
        cut_away = request.PROVES | request.SAYS | request.TRACES
        many = sum(request.role_of(line) & cut_away > 0 for line in lines)
        assert plain > 1 or {*lines} & {LINES[4], LINES[6]} or many > request.CUT_LINES_MAX


@settings(max_examples=examples(500))
@given(
    st.sampled_from(STATUS_LINES),
    st.lists(st.sampled_from(ANSWER_LINES), max_size=12),
    st.lists(st.tuples(st.integers(0, 1_000), st.integers(0, 2), st.binary(max_size=2)), max_size=2),
)
def test_an_answer_is_read_as_python_does(
    heads: Any, status_line: bytes, lines: list[bytes], mutations: list[tuple[int, int, bytes]]
) -> None:
    head = mutated(b"\r\n".join([status_line, *lines]), mutations) + b"\r\n\r\n"
    end = head.find(b"\r\n\r\n") + 4
    found = heads.read_answer_head(head + b"body", MOST)
    if found is not None:
        assert found[0] == end
        assert picture(answer._answer_of(found)) == picture(answer.read_answer_head(head[:end]))


def picture(read: AnswerHead) -> dict[str, object]:
    return {name: getattr(read, name) for name in dir(read) if not name.startswith("_")}


def test_usual_answers_are_read_and_parts_of_them_are_not(heads: Any) -> None:
    usual = [*ANSWER_LINES[:3], ANSWER_LINES[4], ANSWER_LINES[8], *ANSWER_LINES[13:15], *ANSWER_LINES[16:19]]
    head = b"\r\n".join([b"HTTP/1.1 200 OK", *usual, ANSWER_LINES[-1], b"", b""])
    assert heads.read_answer_head(head, MOST) is not None
    for size in range(len(head)):
        assert heads.read_answer_head(head[:size], MOST) is None
    assert heads.read_answer_head(head, len(head) - 5) is None
    assert heads.read_answer_head(head, len(head) - 4)[0] == len(head)
    many = b"HTTP/1.1 200 OK\r\n" + b"x: 1\r\nte: 1\r\n" * 80 + b"\r\n"
    assert heads.read_answer_head(many, MOST) is None
    assert heads.read_answer_head(many.replace(b"te", b"y"), MOST) is not None


@given(st.lists(st.sampled_from(ANSWER_LINES), max_size=5), st.lists(st.integers(0, 300), max_size=3))
def test_an_upstream_is_read_the_same_with_it(heads: Any, lines: list[bytes], places: list[int]) -> None:
    data = b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", b"abcdefg"])

    def read(by: Any) -> list[object]:
        before, answer._answer = answer._answer, by
        side, found = UpstreamSide(HttpLimits()), list[object]()
        side.ask(b"", None, False)
        try:
            for start, end in zip([0, *sorted(places)], [*sorted(places), len(data)], strict=True):
                found.append(side.receive(data[start:end]))
        except Malformed as error:
            found.append(str(error))
        finally:
            answer._answer = before
        seen = None if side.answer is None else picture(side.answer)
        return [*found, seen, side.answering, side.reusable, side.surplus]

    assert read(heads.read_answer_head) == read(None)


def test_a_usual_head_is_cut_and_a_part_of_one_is_not(cut: Cut) -> None:
    lines = [*LINES[:3], LINES[7], TRACE, b"x-tollkeeper-user: ann"]
    head = b"\r\n".join([b"POST / HTTP/1.1", *lines, b"", b""])
    found = cut(head + b"body", MOST)
    assert found is not None
    assert found == cut_head(head)
    assert found[1:] == (
        b"\r\n".join([b"POST / HTTP/1.1", *LINES[:2], b"", b""]), 17, LINES[7], b"x-tollkeeper-user: ann",
        TRACE, TRACE[16:48].decode(), len(head),
    )  # fmt: skip
    for size in range(len(head)):
        assert cut(head[:size], MOST) is None
    assert cut(head, len(head) - 5) is None
    assert cut(head, len(head) - 4) == found
    for unusual in (b"\r\n" + head, head.replace(b"\r\nHost", b"\nHost"), b"\n" + head, b""):
        assert cut(unusual, MOST) is None


@given(st.lists(st.sampled_from(LINES), max_size=6), st.lists(st.integers(0, 400), max_size=3))
def test_a_client_is_read_the_same_with_it(cut: Cut, lines: list[bytes], places: list[int]) -> None:
    head = b"\r\n".join([b"POST / HTTP/1.1", *lines, b"", b""])
    data = head + head + b"GET"

    def read(by: Cut | None) -> list[object]:
        before, request._cut = request._cut, by
        try:
            side, found = ClientSide(HttpLimits()), list[object]()
            for start, end in zip([0, *sorted(places)], [*sorted(places), len(data)], strict=True):
                side.receive(data[start:end])
                while side.state == IDLE and (one := side.head()) is not None:
                    found.append(one[:7])
                    side.request(0, False)
                    side.answered()
            return [*found, side.waiting, side.fresh]
        finally:
            request._cut = before

    assert read(cut) == read(None)


def test_the_first_bytes_of_a_buffer_are_copied(heads: Any) -> None:
    buffer = bytearray(b"abc")
    assert [heads.first_of(buffer, size) for size in range(4)] == [b"", b"a", b"ab", b"abc"]
    for size in (-1, 4):
        with pytest.raises(ValueError, match="more than there is"):
            heads.first_of(buffer, size)
    for wrong in ((b"abc", 1), (buffer, True), (buffer,), (buffer, "1")):
        with pytest.raises(TypeError):
            heads.first_of(*wrong)
