"""Heads read by their lines: the same from memory and without it, within bytes, whoever sends them."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.calls.routes import Route, ServiceRules, UpstreamTarget
from gateway.core.families.family import ApiFamily
from gateway.core.families.header_fields import is_usual
from gateway.core.http_limits import HttpLimits
from gateway.core.model import GENERIC, Attribution, Family
from gateway.core.traces import FIELD, STATE_FIELD, cut_usual_line, read_parent
from gateway.errors import Refusal
from gateway.http.attribution import read_attribution
from gateway.http.identity import credential_of, key_digest
from gateway.http.protocol.request import RequestHead, cut_head, cut_length, read_request_head
from gateway.http.routing.head import NEW_LINES_MAX, CallHead, HeadReader
from gateway.http.routing.routed_head import HeadRouter, RoutedHead
from gateway.http.routing.routes import api_of, withheld
from gateway.http.routing.worker_bindings import WorkerBindings
from tests.http.fakes import AUTH, CHAT, KEY, PEPPER, ROUTES, FakeDirectory, get, post
from tests.http.stage import Stage
from tests.search import examples

LIMITS = HttpLimits(head_fields_max=12)
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACE_1 = f"{2:032x}"
TARGETS = {
    name: UpstreamTarget(name, f"http://{name}.test/base", (("Authorization", "Bearer s"), ("X-Ours", "1")))
    for name in {route.upstream for route in ROUTES} - {""}
}
SOCKET = (Route(("POST",), "/v1/responses", "up", "chat", Family("openai"), "openai_responses"),)
Picture = tuple[object, ...]


def router(limits: HttpLimits = LIMITS, routes: tuple[Route, ...] = ROUTES) -> HeadRouter:
    bindings = WorkerBindings(
        routes, TARGETS, ServiceRules(shared="up"), FakeDirectory(), lambda event, **facts: None
    )
    return HeadRouter(routes, TARGETS, bindings, limits)


def reader(traced: bool = False) -> HeadReader:
    return HeadReader(router(), PEPPER, LIMITS, traced=traced)


def said(refusal: Refusal | None) -> object:
    return refusal and (type(refusal), refusal.message, refusal.status, refusal.param)


def picture(call: CallHead) -> Picture:
    """All that a head is to the rest of the data plane: what is refused, forwarded and recorded.

    Lines that would be forwarded count only where there is an upstream.
    """
    routed = call.routed
    if routed.refusal is not None:
        return routed.family, said(routed.refusal), routed.fatal, routed.allow, routed.label
    return (
        routed.family, routed.label, routed.route, routed.service_key, routed.params, routed.owned,
        routed.units, routed.length, routed.chunked, routed.keep_alive, routed.expects, routed.minor,
        routed.method, routed.upstream, routed.buffered, routed.opening, routed.closing,
        routed.closing_plain, forwarded(routed, call.passed), said(call.identity_refusal), said(call.refusal),
        call.proof.digest, call.attribution, call.said.columns, call.parent, call.others,
    )  # fmt: skip


def forwarded(routed: RoutedHead, passed: bytes) -> bytes:
    return passed if routed.upstream in TARGETS else b""


def whole(head: bytes, traced: bool) -> Picture:
    """The same by reading all of the head at once, which is what reading it by line must come to."""
    head, _ = cut_length(head)
    routed = router().route(head)
    if routed.refusal is not None:
        return picture(CallHead(routed))
    assert routed.route is not None
    read = read_request_head(head, LIMITS)
    # What `Connection` nominates is for us to read, and not passed on.
    parent = read_parent(read.read.get(FIELD, []), [line for _, line in read.fields]) if traced else None
    digest, refused = "", None
    try:
        digest = key_digest(credential_of(read.read)[0], PEPPER)
    except Refusal as refusal:
        refused = refusal
    attribution, text, misled = Attribution(), "", None
    try:
        attribution, text = read_attribution(read.read, routed.family)
    except Refusal as refusal:
        misled = refusal
    spans = read_parent(read.read.get(FIELD, []))
    session = attribution.session or ("" if spans is None or misled else spans.trace_id.hex())
    lines = list(passing(read, routed.route, routed.buffered, traced))
    usual = cut_usual_line(head)[1]
    if usual in lines and len(read.read.get(FIELD, [])) == 1:
        lines = [line for line in lines if line != usual] + [usual]
    family = api_of(routed.route)
    others = [line for line in lines if family.name != GENERIC and not is_of(line, family)]
    passed = b"".join(line + b"\r\n" for line in lines if line not in others)
    return (
        *picture(CallHead(routed))[:18], forwarded(routed, passed), said(routed.query_refusal or refused),
        said(routed.object_refusal or misled or routed.field_refusal), digest,
        replace(attribution, session=session, is_trace=session != attribution.session), text,
        parent, b"".join(line + b"\r\n" for line in others) if routed.upstream in TARGETS else b"",
    )  # fmt: skip


def is_of(line: bytes, family: ApiFamily) -> bool:
    """Whether the family's clients send a field with this name."""
    name = line.partition(b":")[0].lower()
    return is_usual(name) or name in family.headers


def passing(read: RequestHead, route: Route, buffered: bool, traced: bool) -> Iterator[bytes]:
    gone = read.nominated | {b"authorization", b"x-ours"} | withheld(read, route)
    if buffered:
        gone |= {b"accept-encoding"}
    if traced:
        gone |= {FIELD} if read_parent(read.read.get(FIELD, [])) else {FIELD, STATE_FIELD}
    return (line for kind, line in read.fields if kind.passes and kind.lower not in gone)


USUAL = [
    b"host: h", b"Authorization: Bearer " + KEY.encode(),
    b"traceparent: 00-%b-b7ad6b7169203331-01" % TRACE.encode(),
]  # fmt: skip
FINE = [
    b"X-Api-Key: " + KEY.encode(), b"traceparent: 00-" + b"1" * 32 + b"-b7ad6b7169203331-00",
    b"tracestate: a=b", b"Traceparent:00-" + b"0" * 32 + b"-b7ad6b7169203331-01", b"traceparent: no",
    b"baggage: k=v", b"Baggage: k=v,tollkeeper.run=r;p=1 , l",
    b"TRACEPARENT: 01-" + b"a" * 32 + b"-b7ad6b7169203331-01-x ", b"Connection: close",
    b"connection: X-Passes, traceparent", b"Connection: x-tollkeeper-user, tracestate, Accept",
    b"Connection: keep-alive, x-long, Accept-Encoding", b"x-passes: 1", b"x-passes: 2", b"X-Passes:\t3 ",
    b"x-long: " + b"x" * 99, b"X-Ours: theirs", b"accept: a/b", b"Accept-Encoding: gzip, br",
    b"accept-encoding: br", b"Content-Type: application/json", b"Range: bytes=0-1", b"x-goog-fieldmask: a",
    b"x_http_method: GET", b"x-litellm-model: m", b"anthropic-version: 1", b"anthropic-beta: b",
    b"x-goog-api-client: sdk", b"x-forwarded-for: 1.2.3.4", b"x-request-id: r", b"TE: trailers",
    b"expect: 100-continue", b"upgrade: h2c", b"Proxy-Connection: upgrade", b"x-tollkeeper-user: ann",
    b"x-tollkeeper-session: s", b"good: \xe9", b"good:", b"x-claude-code-session-id: c", b"Session-Id: d",
    b"X-Claude-Code-Session-Id: \xff", b"x-tollkeeper-project-id: 7", b'x-tollkeeper-metadata: {"a": 1}',
    b"x-vertex-ai-llm-request-type: shared", b"Cookie: a=b", b"X_Vertex_AI_LLM_Request_Type: shared",
    b"x-tollkeeper-made-up: 1", b"x-stainless-retry-count: 1", b"Good:\t ", b"CONTENT-LENGTH: 5",
]  # fmt: skip
ODD = [
    b"x-api-key: other", b"authorization: Basic x", b"api-key:", b"content-type: text/plain",
    b"Content-Encoding: gzip", b"Expect: x", b"transfer-encoding: chunked", b"Transfer-Encoding: gzip",
    b"content-length:6", b"content_length: 7", b"Upgrade: websocket", b"X-Tollkeeper-User: bob",
    b"x-tollkeeper-user: \xff", b"x_tollkeeper_user: eve", b"x-tollkeeper-project-id: seven",
    b"baggage: tollkeeper.run=",
    b"x-tollkeeper-metadata: [", b"x-tollkeeper-units: 5", b"host: two", b" folded: 1", b"\tfolded",
    b"no colon", b"space : 1", b": empty", b"bad\x00: 1", b"bad: \x01", b"bad: a\rb", b"bad: a\nb",
    b"bad\xe9: 1", b"a(b: 1", b"x-request_id: 1",
]  # fmt: skip
SERVED = [
    b"POST /v1/chat/completions HTTP/1.1", b"POST /v1/messages?beta=true HTTP/1.1",
    b"GET /v1/models HTTP/1.1", b"POST /services/search/a HTTP/1.1",
    b"POST /v1beta/models/m:generateContent HTTP/1.1", b"GET /free/x HTTP/1.1",
]  # fmt: skip
REFUSED = [
    b"GET /v1/models HTTP/1.0", b"POST /services/search/a?key=1 HTTP/1.1", b"GET /v1/files HTTP/1.1",
    b"PUT /v1/chat/completions HTTP/1.1", b"GET /nope HTTP/1.1", b"BREW / HTTP/1.1", b"GET / HTTP/3.0",
    b"GET //x HTTP/1.1", b"POST /v1/chat/completions?x=1 HTTP/1.1", b"GET /.tollkeeper/usage HTTP/1.1",
    b"GET",
]  # fmt: skip


def spelled(line: bytes, how: int) -> bytes:
    """A line with its name in another case."""
    name, colon, value = line.partition(b":")
    return (name, name.title(), name.upper(), name.swapcase())[how] + colon + value


LINE = st.tuples(
    st.sampled_from(FINE) | st.sampled_from(FINE) | st.sampled_from(FINE) | st.sampled_from(FINE + ODD),
    st.sampled_from([0, 0, 0, 1, 2, 3]),
).map(lambda drawn: spelled(*drawn))
REQUEST = st.sampled_from(SERVED) | st.sampled_from(SERVED) | st.sampled_from(SERVED + REFUSED)


@example(SERVED[0], [b"upgrade: h2c", b"Proxy-Connection: upgrade", b"Transfer-Encoding: gzip"], [], 3, False)
@example(b"GET /.tollkeeper/usage HTTP/1.1", [], [b"connection: X-Passes, traceparent"], 3, False)
@example(SERVED[0], [b"tracestate: a=b"], [b"Connection: x-tollkeeper-user, tracestate, Accept"], 3, True)
@settings(max_examples=examples(500))
@given(
    REQUEST,
    st.lists(LINE, max_size=8),
    st.lists(LINE, max_size=4),
    st.sampled_from([3, 3, 3, 2, 0]),
    st.booleans(),
)
def test_head_of_cached_lines_equals_head_read_whole(
    request_line: bytes, lines: list[bytes], others: list[bytes], usual: int, traced: bool
) -> None:
    memory = reader(traced)
    lines = [*USUAL[:usual], *lines]
    # The same head with another line in each place, each of them twice: as new, by its lines, as a whole.
    heads = [lines, lines, lines]
    heads += [
        [*lines[:at], line, *lines[at + shift :]] for at, line in enumerate(others) for shift in (0, 1)
    ] * 2
    for each in heads:
        head = b"\r\n".join([request_line, *each, b"", b""])
        expected = whole(head, traced)
        assert picture(reader(traced).read(head)) == expected
        call = memory.read(head)
        assert picture(call) == expected
        if call.routed.refusal is None:
            memory.remember(call)


def head(fields: bytes, path: bytes = b"/v1/models") -> bytes:
    return get(path, AUTH + fields)


def trace(number: int) -> bytes:
    return b"traceparent: 00-%032x-b7ad6b7169203331-01\r\n" % (number + 1)


def kept(reader: HeadReader) -> dict[str, int]:
    return {
        "heads": reader._heads.held, "lines": reader._lines.held,
        "routed": reader._routed.held, "proofs": reader._proofs.held,
        "said": reader._attributions.held,
    }  # fmt: skip


def learned(reader: HeadReader, head: bytes) -> CallHead:
    """A head as it is read once all that repeats of it is known."""
    for _ in range(3):
        reader.remember(reader.read(head))
    return reader.read(head)


def alike(one: CallHead, other: CallHead) -> bool:
    """Whether both are the same parts of what is remembered, and nothing is news."""
    parts = ((each.routed, each.proof, each.said, each.passed, each.news) for each in (one, other))
    return all(mine is its for mine, its in zip(*parts, strict=True)) and one.news is None


def test_rest_of_head_is_cached_for_all_clients() -> None:
    memory = reader()
    known = learned(memory, head(b"x-tollkeeper-user: ann\r\n"))
    assert alike(memory.read(head(b"x-tollkeeper-user: ann\r\n")), known)
    learned(memory, get(b"/v1/models", b"x-tollkeeper-user: bob\r\nx-api-key: another\r\n"))
    assert list(memory.known) == [get(b"/v1/models", b"")]
    for fields in (b"x-tollkeeper-user: bob\r\nx-api-key: another\r\n", b"x-api-key: another\r\n"):
        call = memory.read(get(b"/v1/models", fields + trace(1)))
        assert call.passed == trace(1)
        assert (call.proof is known.proof, call.routed is known.routed) == (False, True)
        assert call.attribution.user == ("bob" if b"bob" in fields else "")
        assert call.attribution.session == TRACE_1


def test_cached_heads_have_the_same_maximum_of_lines() -> None:
    memory = reader()
    for lines in range(7, 12):
        fields = b"".join(b"x-%d: 1\r\n" % number for number in range(lines))
        learned(memory, head(fields))
        for more in (b"", trace(1), b"x-tollkeeper-user: ann\r\n", b"x-tollkeeper-user: ann\r\n" + trace(1)):
            for _ in range(2):  # of the whole, and of what is known then
                assert picture(memory.read(head(fields + more))) == whole(head(fields + more), False)
                memory.remember(memory.read(head(fields + more)))


def test_reader_reads_only_the_trace_of_cached_head() -> None:
    memory = reader()
    known = learned(memory, head(trace(0) + b"idempotency-key: 0\r\nBaggage: n=0\r\n"))
    before = kept(memory)
    for number in range(50):
        own = trace(number) + b"idempotency-key: %d\r\nBaggage: n=%d\r\n" % (number, number)
        call = memory.read(head(own))
        assert call.passed == own.removeprefix(trace(number)) + trace(number)
        assert call.attribution.session == f"{number + 1:032x}"
        assert (call.routed, call.proof, call.news) == (known.routed, known.proof, None)
    assert kept(memory) == before
    assert not memory.known


@pytest.mark.parametrize(
    "line", [b"x-stainless-retry-count: %d", b"x-tollkeeper-user: user-%d", b"x-made-up: %d"]
)
def test_another_value_of_line_keeps_rest_of_head_cached(line: bytes) -> None:
    memory = reader()
    known = learned(memory, head(line % 0 + b"\r\n"))
    for number in range(1, 50):
        call = memory.read(head(line % number + b"\r\n"))
        assert (call.routed, call.proof) == (known.routed, known.proof)


def test_reader_bounds_new_lines_of_each_head() -> None:
    memory = HeadReader(router(HttpLimits()), PEPPER, HttpLimits())
    long = head(b"".join(b"x-%d: 1\r\n" % number for number in range(80)))
    memory.remember(memory.read(long))
    assert len(memory._lines.known) == NEW_LINES_MAX
    assert memory.read(long).others.count(b"\r\n") == 80
    for _ in range(3):
        memory.remember(memory.read(long))
    assert list(memory.known) == [cut_head(long)[1]]


def test_opening_of_a_socket_is_read_again_as_the_head_of_a_posted_call() -> None:
    fields = AUTH + b"x-tollkeeper-user: ann\r\nX-Passes: 1\r\n" + trace(1)
    opens = (
        b"Upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    # RFC 9110, 7.6.1: what `Connection` names is not forwarded.
    opens += b"Connection: upgrade, x-hop\r\nx-hop: 1\r\n"
    for traced in (False, True):
        memory = HeadReader(router(LIMITS, SOCKET), PEPPER, LIMITS, traced=traced)
        opened = memory.read(get(b"/v1/responses", fields + opens)).routed.opens
        assert opened is not None
        request = replace(opened, method=b"POST", upgrades=False)
        posted = memory.read(post(b"", b"/v1/responses", fields).replace(b"content-length: 0\r\n", b""))
        turn = memory.read_again(request)
        assert picture(turn) == picture(posted)
        assert (turn.attribution.user, turn.news) == ("ann", None)  # no other socket has its key


def test_refused_or_unproven_heads_are_not_cached() -> None:
    memory = reader()
    for number in range(20):
        for fields in (
            b"x-tollkeeper-project-id: x%d\r\n",
            b"x-api-key: other%d\r\n",
            b"x-tollkeeper-units: %d\r\n",
        ):
            memory.remember(memory.read(head(fields % number)))
        memory.remember(memory.read(head(b"", b"/nope%d" % number)))
        memory.remember(memory.read(head(b"", b"/v1/models?key=%d" % number)))
        memory.read(head(b"x-good: %d\r\n" % number))
    assert not any(kept(memory).values())


def test_ten_thousand_callers_in_turn_stay_cached() -> None:
    memory = reader()
    heads = [get(b"/v1/models", b"authorization: Bearer tk_%032d\r\n" % number) for number in range(10_000)]
    for one in heads:
        memory.remember(memory.read(one))
    for one in heads:
        assert memory.read(one[:-2] + trace(1) + b"\r\n").news is None


@pytest.mark.parametrize("length", [1, 100, 3000])
def test_made_up_lines_stay_within_bytes_and_displace_no_head_in_use(length: int) -> None:
    maxima = {"heads": 200_000, "lines": 200_000, "routed": 100_000, "proofs": 300_000, "said": 200_000}
    memory = HeadReader(router(), PEPPER, LIMITS, bytes_max=1_000_000)
    usual, traced = head(b"x-tollkeeper-user: ann\r\nx-long: y\r\n"), head(b"x-tollkeeper-user: bob\r\n")
    known, other = learned(memory, usual), learned(memory, traced)
    for number in range(3000):
        made_up = b"%d" % number + b"x" * length
        fields = (
            b"x-made-up: %b\r\n", b"x-tollkeeper-user: %.100b\r\n", b"x-goog-a: %b\r\n",
            b"user-agent: %b\r\n", b"x-%.50b: 1\r\n",
        )[number % 5] % made_up  # fmt: skip
        key = b"authorization: Bearer %.300b\r\n" % made_up
        for _ in range(2):
            memory.remember(memory.read(get(b"/v1/models", key + fields)))
        assert all(0 < size <= maxima[name] for name, size in kept(memory).items())
        assert alike(memory.read(usual), known)
        call = memory.read(traced[:-2] + trace(number) + b"\r\n")
        assert (call.routed, call.proof, call.said, call.news) == (
            other.routed,
            other.proof,
            other.said,
            None,
        )


def test_counted_bytes_are_at_least_the_held_bytes() -> None:
    def fill(memory: HeadReader) -> None:
        for number in range(400):
            fields = b"x-goog-a: %d\r\nx-tollkeeper-user: u%d\r\nx-made-up: %d\r\n" % (number, number, number)
            fields += b'x-tollkeeper-metadata: {"n": %d}\r\nx-tollkeeper-session: \xf0\x9f\x8e\xab%d\r\n' % (
                number,
                number,
            )
            sent = get(b"/services/search/x", b"authorization: Bearer k%d\r\n" % number + fields)
            for _ in range(2):
                memory.remember(memory.read(sent))

    fill(reader())  # what is made once, and names of fields, is there already
    memory = reader()
    gc.collect()
    tracemalloc.start()
    try:
        fill(memory)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(kept(memory).values())
    assert held <= sum(kept(memory).values())


async def test_heads_without_valid_credential_are_never_cached(stage: Stage) -> None:
    stage.directory.known = False
    client = await stage.client()
    for n in range(20):
        assert (await client.ask(post(CHAT, fields=b"x-n: %d\r\n" % n))).status == 401
    assert not any(kept(stage.plane.heads).values())
    stage.directory.known = True
    for _ in range(3):
        assert (await client.ask(post(CHAT))).status == 200
    assert len(stage.plane.heads.known) == 1


async def test_calls_have_their_own_trace_user_and_lines(stage: Stage) -> None:
    client = await stage.client()
    for n in range(6):
        own = b"x-tollkeeper-user: user-%d\r\nx-n: %d\r\nbaggage: n=%d\r\n" % (n // 2, n, n)
        assert (await client.ask(post(CHAT, fields=trace(n) + own))).status == 200
    assert [hold.user for hold in stage.counters.holds] == [f"user-{n // 2}" for n in range(6)]
    for n, received in enumerate(stage.upstream.received):
        assert received.all(b"traceparent") == [trace(n)[13:-2]]
        assert received.all(b"x-n") == [b"%d" % n]
        assert received.all(b"baggage") == [b"n=%d" % n]
        assert not received.all(b"x-tollkeeper-user")
