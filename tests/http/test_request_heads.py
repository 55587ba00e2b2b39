"""Ambiguous requests are refused, never repaired, and the connection is closed behind them."""

from __future__ import annotations

import json

import pytest

from tests.http.fakes import AUTH, CHAT, answer, get, post
from tests.http.stage import Stage

GOOD = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + AUTH


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.1\r\n" + AUTH,  # no Host
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: a\r\n" + AUTH,
        b"GET /v1/models HTTP/1.1\r\nhost: a b\r\n" + AUTH,
        b"GET /v1/models HTTP/1.1\r\nhost: a/b\r\n" + AUTH,
        b"GET  /v1/models HTTP/1.1\r\nhost: x\r\n" + AUTH,
        b"GET /v1/models\r\nhost: x\r\n" + AUTH,
        b"GET /v1/models HTTP/1.1 \r\nhost: x\r\n" + AUTH,
        b"GET v1/models HTTP/1.1\r\nhost: x\r\n" + AUTH,
        b"GET * HTTP/1.1\r\nhost: x\r\n" + AUTH,
        b"GET x:80 HTTP/1.1\r\nhost: x\r\n" + AUTH,
        b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n" + AUTH,
        b"CONNECT /v1/models HTTP/1.1\r\nhost: x\r\n" + AUTH,
        GOOD + b"a : b\r\n",
        GOOD + b"a: b\r\n c\r\n",  # obs-fold
        GOOD + b"a: b\rc\r\n",
        GOOD + b"a: b\nc: d\r\n",
        GOOD + b"a: b\x00c\r\n",
        GOOD + b"a: b\x01c\r\n",
        GOOD + b"a: b\x7f\r\n",
        GOOD + b": b\r\n",
        GOOD + b"a\x80: b\r\n",
        GOOD + b"transfer_encoding: chunked\r\n",
        GOOD + b"content_length: 4\r\n",
        GOOD + b"x_tollkeeper_user: me\r\n",
        GOOD + b"x-tollkeeper_user: me\r\n",
        GOOD + b"x_api_key: k\r\n",
        GOOD + b"transfer-encoding: gzip, chunked\r\n",
        GOOD + b"transfer-encoding: identity\r\n",
        GOOD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        GOOD + b"transfer-encoding: chunked, chunked\r\n",
        GOOD + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n",
        GOOD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        GOOD + b"content-length: 4\r\ncontent-length: 4\r\n",
        GOOD + b"Content-Length: 4\r\ncontent-length: 5\r\n",
        GOOD + b"Content-Length: 4\r\ncontent-LENGTH: 4\r\n",
        GOOD + b"content-length: 4, 4\r\n",
        GOOD + b"content-length: +4\r\n",
        GOOD + b"content-length: 0x4\r\n",
        GOOD + b"content-length: \r\n",
        GOOD + b"content-length: 4 4\r\n",
        GOOD + b"content-length: -1\r\n",
        b"GET /v1/models/m HTTP/1.0\r\ntransfer-encoding: chunked\r\n" + AUTH,
        b"GET /v1/models HTTP/1.1\nhost: x\n\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody speaks TLS
        b"\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\n" + AUTH,
    ],
)
async def test_what_is_not_http_as_we_know_it_is_refused_and_closed(stage: Stage, head: bytes) -> None:
    client = await stage.client()
    await client.send(head + b"\r\n" + b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + AUTH + b"\r\n")
    got = await client.answer("GET")
    assert (got.status, got.reason) == (400, "invalid_request")
    assert got.one(b"connection") == b"close"
    assert await client.is_closed()
    assert not stage.upstream.received


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"BREW /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 501),
        (b"GET /v1/models HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\nexpect: 200-ok\r\n\r\n", 417),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"GET /" + b"a" * 9000, 414),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\na: " + b"b" * 70_000, 431),
        (b"GET / HTTP/1.1\r\na: " + b"b" * 70_000 + b"\r\n\r\n", 431),
    ],
)
async def test_refusals_with_a_status_of_their_own(stage: Stage, head: bytes, status: int) -> None:
    client = await stage.client()
    await client.send(head)
    got = await client.answer("GET")
    assert (got.status, got.reason) == (status, "invalid_request")
    assert await client.is_closed()


@pytest.mark.parametrize(
    ("line", "spoken", "upgrade", "shape"),
    [
        (b"GET /v1/models", b"", b"websocket", b'"type":"invalid_request_error"'),
        (b"GET /v1/realtime?model=gpt-realtime", b"", b"h2c, WebSocket", b'"type":"invalid_request_error"'),
        (b"GET /nowhere", b"anthropic-version: 1\r\n", b"websocket", b'"type":"error"'),
        (b"GET /v1beta/live", b"", b"websocket", b'"status":"INVALID_ARGUMENT"'),
        (b"GET /services/search/live", b"", b"websocket", b'"reason":"invalid_request"'),
    ],
)
async def test_an_upgrade_that_is_not_served_is_426_in_the_words_of_its_caller(
    stage: Stage, line: bytes, spoken: bytes, upgrade: bytes, shape: bytes
) -> None:
    client = await stage.client()
    head = line + b" HTTP/1.1\r\nhost: x\r\n" + AUTH + spoken
    await client.send(head + b"connection: upgrade\r\nupgrade: " + upgrade + b"\r\n\r\n")
    got = await client.answer("GET")
    assert (got.status, got.reason, got.one(b"upgrade")) == (426, "invalid_request", b"HTTP/1.1")
    assert shape in got.body
    assert await client.is_closed()
    assert not stage.upstream.received


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/./models", b"/v1/../v1/models", b"/v1/models/..", b"/v1/models/.", b"//v1/models",
        b"/v1//models",
        b"/v1/models/%2e%2e", b"/v1/models/%2E", b"/v1%2fmodels", b"/v1/models%2Fx", b"/v1/models/a%5cb",
        b"/v1/models;x=1", b"/v1/models/a;b", b"/v1/models/%00", b"/v1/models/%zz", b"/v1/models/%4",
        b"/v1/models/a\\b", b"/v1/models#a", b"/v1/models/a\xc3\xa9", b'/v1/models/"', b"/v1/models?a#b",
        b"/v1/models?a\x80", b"/v1/models/%0d%0ahost:x", b"/services/search/../chat", b"/services/search//x",
        b"/v1/chat%2Fcompletions", b"/v1/models/..%2Fx", b"/v1/models/%2Fx", b"/v1/models/x%2f",
        b"/services/search%2Fx", b"/services/search/a%2Fb", b"/v1/models/a%2Fb",
    ],
)  # fmt: skip
async def test_paths_that_could_be_read_in_two_ways_are_refused(stage: Stage, path: bytes) -> None:
    got = await stage.ask(get(path), "GET")
    assert got.status == 400
    assert not stage.upstream.received


async def test_the_path_and_query_that_were_authorised_are_sent_verbatim(stage: Stage) -> None:
    await stage.ask(get(b"/v1/models/a%20b%25?limit=%2F..&after="), "GET")
    assert stage.upstream.received[0].target == b"/v1/models/a%20b%25?limit=%2F..&after="


async def test_an_absolute_target_chooses_nothing_but_its_path(stage: Stage) -> None:
    got = await stage.ask(get(b"http://evil.example:81/v1/models?limit=7"), "GET")
    assert got.status == 200
    (received,) = stage.upstream.received
    assert received.target == b"/v1/models?limit=7"
    assert received.all(b"host") == [b"127.0.0.1:%d" % stage.upstream.port]


async def test_one_empty_line_in_front_of_a_request_is_ignored(stage: Stage) -> None:
    client = await stage.client()
    assert (await client.ask(b"\r\n" + post(CHAT))).status == 200
    assert (await client.ask(b"\r\n" + post(CHAT))).status == 200


async def test_a_head_in_single_bytes_is_a_head(stage: Stage) -> None:
    client = await stage.client()
    for byte in post(CHAT):
        await client.send(bytes([byte]))
    assert (await client.answer()).status == 200


async def test_http_1_0_is_closed_unless_it_asks_otherwise(stage: Stage) -> None:
    client = await stage.client()
    staying = b"GET /v1/models/m HTTP/1.0\r\nconnection: keep-alive\r\n" + AUTH + b"\r\n"
    kept = await client.ask(staying, "GET")
    assert kept.one(b"connection") == b"keep-alive"
    closed = await client.ask(b"GET /v1/models/m HTTP/1.0\r\n" + AUTH + b"\r\n", "GET")
    assert closed.status == 200
    assert closed.one(b"connection") == b"close"
    assert await client.is_closed()


async def test_a_client_of_http_1_0_gets_no_chunks(stage: Stage) -> None:
    stage.upstream.scripts.append(
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
    )
    client = await stage.client()
    await client.send(b"GET /v1/models/m HTTP/1.0\r\nconnection: keep-alive\r\n" + AUTH + b"\r\n")
    raw = await client.until_close()
    assert raw.endswith(b"\r\n\r\nhello")
    assert b"transfer-encoding" not in raw


async def test_close_is_honoured(stage: Stage) -> None:
    client = await stage.client()
    got = await client.ask(post(CHAT, fields=b"Connection: close\r\n"))
    assert got.one(b"connection") == b"close"
    assert await client.is_closed()


async def test_h2c_is_ignored_and_the_body_is_this_requests_body(stage: Stage) -> None:
    client = await stage.client()
    fields = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    body = b'{"model":"m","messages":[{"role":"user","content":"GET /x HTTP/1.1"}]}'
    assert (await client.ask(post(body, fields=fields))).status == 200
    chunked = post(b"", fields=fields + b"transfer-encoding: chunked\r\n").replace(
        b"content-length: 0\r\n", b""
    )
    assert (await client.ask(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))).status == 200
    assert (await client.ask(post(CHAT))).status == 200
    assert [received.body for received in stage.upstream.received] == [body, body, CHAT]
    for received in stage.upstream.received:
        assert not received.all(b"upgrade")
        assert not received.all(b"http2-settings")
        assert not received.all(b"connection")


async def test_a_repeated_head_with_another_length_is_framed_by_its_own(stage: Stage) -> None:
    client = await stage.client()
    for size in (1, 500, 3, 1000, 7):
        body = CHAT[:-1] + b',"x":"' + b" " * size + b'"}'
        assert (await client.ask(post(body))).status == 200
        assert stage.upstream.received[-1].body == body
    assert len(stage.plane.heads.known) == 1


async def test_expect_is_answered_only_when_the_body_is_wanted(stage: Stage) -> None:
    head, _, body = post(CHAT, fields=b"expect: 100-continue\r\n").partition(b"\r\n\r\n")
    client = await stage.client()
    await client.send(head + b"\r\n\r\n")
    assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await client.ask(body)).status == 200

    refused = await stage.client()
    got = await refused.ask(head.replace(b"Bearer tk", b"Basic tk") + b"\r\n\r\n")
    assert (got.status, got.interim) == (401, [])
    assert got.one(b"connection") == b"close"
    assert await refused.is_closed()

    old = await stage.client()
    got = await old.ask(head.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n\r\n" + body)
    assert (got.status, got.interim) == (200, [])

    whole = await stage.client()
    got = await whole.ask(head + b"\r\n\r\n" + body)
    assert (got.status, got.interim) == (200, [])


async def test_expect_is_answered_for_a_streamed_body_too(stage: Stage) -> None:
    client = await stage.client()
    head, _, body = post(b"x" * 10, b"/services/search/", b"expect: 100-continue\r\n").partition(b"\r\n\r\n")
    await client.send(head + b"\r\n\r\n")
    assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await client.ask(body)).status == 200
    assert stage.upstream.received[0].body == body
    assert not stage.upstream.received[0].all(b"expect")


async def test_trailers_never_become_fields(stage: Stage) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    body = b"%x\r\n%b\r\n0\r\n" % (len(CHAT), CHAT)
    got = await stage.ask(head + b"\r\n" + body + AUTH + b"x-tollkeeper-user: me\r\n\r\n")
    assert got.status == 401
    got = await stage.ask(head + AUTH + b"\r\n" + body + b"x-tollkeeper-user: me\r\nx-other: 1\r\n\r\n")
    assert got.status == 200
    assert stage.counters.holds[0].user == ""
    assert not stage.upstream.received[0].all(b"x-other")


async def test_an_answer_to_head_has_no_body(stage: Stage) -> None:
    client = await stage.client()
    stage.upstream.scripts.append([b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"])
    got = await client.ask(get(b"/v1/models", method=b"HEAD"), "HEAD")
    assert (got.status, got.one(b"content-length"), got.body) == (200, b"10", b"")
    got = await client.ask(get(b"/nope", method=b"HEAD"), "HEAD")
    assert (got.status, got.body) == (404, b"")
    stage.upstream.scripts.append([answer(b"x")])
    assert (await client.ask(get(b"/v1/models"), "GET")).body == b"x"
    assert stage.upstream.received[0].method == b"HEAD"
    assert stage.upstream.connections == 2  # a body could still come on the first


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_that_never_have_a_body(stage: Stage, status: bytes) -> None:
    client = await stage.client()
    stage.upstream.scripts.append([b"HTTP/1.1 %b\r\netag: x\r\n\r\n" % status])
    got = await client.ask(get(b"/v1/models"), "GET")
    assert (got.status, got.body) == (int(status[:3]), b"")
    assert not got.all(b"transfer-encoding")
    assert (await client.ask(get(b"/v1/models"), "GET")).status == 200


async def test_known_paths_say_which_methods_they_take(stage: Stage) -> None:
    got = await stage.ask(get(b"/v1/chat/completions"), "GET")
    assert (got.status, got.reason, got.one(b"allow")) == (405, "method_not_allowed", b"POST")
    got = await stage.ask(post(b"{}", b"/v1/models"))
    assert (got.status, got.one(b"allow")) == (405, b"GET, HEAD")
    got = await stage.ask(get(b"/v1beta/models/g:generateContent"), "GET")
    assert got.status == 405
    # Counted under the route they would have been, never under what was asked.
    refused = [row[0] for row in stage.tally.snapshot()["requests"] if row[1] == 405]
    generate = "/v1beta/models/{model}:generateContent"
    assert sorted(refused) == ["/v1/chat/completions", "/v1/models", generate]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("model", ["m:predict", "m:generateContent:x", "m%3AgenerateContent", "m%3apredict"])
async def test_another_action_on_a_model_of_googles_is_no_route(
    stage: Stage, method: str, model: str
) -> None:
    head = f"{method} /v1beta/models/{model} HTTP/1.1\r\nhost: x\r\n".encode() + AUTH + b"\r\n"
    got = await stage.ask(head, method)
    assert (got.status, got.reason) == (404, "unknown_route")
    assert not stage.upstream.received


async def test_a_model_of_openais_may_have_colons(stage: Stage) -> None:
    assert (await stage.ask(get(b"/v1/models/llama3:m:x::1"), "GET")).status == 200


@pytest.mark.parametrize(
    ("model", "googles"),
    [
        (b"ft:gpt-4o:x", False), (b"llama3:latest", False), (b"g:generateContent", True),
        (b"g:batchEmbedContents", True), (b"g:predictLongRunning", True),
    ],
)  # fmt: skip
async def test_a_name_with_colons_is_refused_in_openais_shape(
    stage: Stage, model: bytes, *, googles: bool
) -> None:
    head = b"DELETE /v1/models/%b HTTP/1.1\r\nhost: x\r\n%b\r\n" % (model, AUTH)
    error = json.loads((await stage.ask(head, "DELETE")).body)["error"]
    assert ("status" in error, "param" in error) == (googles, not googles)
