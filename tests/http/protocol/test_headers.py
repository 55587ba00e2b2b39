"""What passes in each direction, and what never does."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime

import pytest

from gateway.core.calls.routes import Route, ServiceRules, UpstreamTarget
from gateway.core.http_limits import HttpLimits
from gateway.core.model import Family
from gateway.http.routing.routed_head import HeadRouter
from gateway.http.routing.worker_bindings import WorkerBindings
from tests.http.fakes import AUTH, CHAT, KEY, ROUTES, FakeDirectory, answer, get, post, told
from tests.http.stage import Stage, staged

_PASSED = (
    b"Accept: text/x\r\nUser-Agent: u/1\r\nX-Custom: a\r\nX-Custom: b\r\nCookie: c=d\r\ntraceparent: 00-1\r\n"
    b"idempotency-key: k\r\nanthropic-version: 1\r\n"
)
_ENDED = (
    b"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nTrailer: x\r\n"
    b"Proxy-Authorization: Basic x\r\nForwarded: for=1\r\nX-Forwarded-For: 1.2.3.4\r\n"
    b"X-Forwarded-Host: evil\r\n"
    b"X-Real-IP: 1.2.3.4\r\nVia: 1.1 x\r\nX-Request-Id: theirs\r\nx-tollkeeper-user: me\r\n"
    b"x-tollkeeper-anything: 1\r\nConnection: keep-alive, X-Nominated\r\nX-Nominated: secret\r\n"
)


async def test_end_to_end_fields_pass_and_others_end_here(stage: Stage) -> None:
    await stage.ask(post(CHAT, fields=_PASSED + _ENDED))
    (received,) = stage.upstream.received
    names = [name for name, _ in received.headers]
    assert received.all(b"x-custom") == [b"a", b"b"]
    for line in _PASSED.splitlines():
        assert line.partition(b":")[0].lower() in names
    for line in _ENDED.splitlines():
        name = line.partition(b":")[0].lower()
        assert name == b"x-request-id" or name not in names
    assert received.all(b"x-request-id") == [stage.counters.holds[0].request_id.encode()]
    assert received.all(b"authorization") == [b"Bearer upstream-secret"]
    assert received.all(b"host") == [b"127.0.0.1:%d" % stage.upstream.port]
    assert received.all(b"content-length") == [b"%d" % len(CHAT)]


async def test_nominating_our_own_fields_removes_nothing_of_ours(stage: Stage) -> None:
    fields = b"connection: authorization, x-request-id, host, content-length, x-api-key\r\n"
    assert (await stage.ask(post(CHAT, fields=fields))).status == 200
    (received,) = stage.upstream.received
    for name in (b"authorization", b"x-request-id", b"host", b"content-length"):
        assert len(received.all(name)) == 1


@pytest.mark.parametrize(("status", "limits"), [(b"429 X", True), (b"529 X", True), (b"503 X", False)])
async def test_an_upstream_that_refuses_tells_of_its_own_limits(
    stage: Stage, status: bytes, limits: bool
) -> None:
    fields = b"x-ratelimit-limit-requests: 1\r\nanthropic-ratelimit-tokens-limit: 2\r\nretry-after: 9\r\n"
    stage.upstream.scripts.append([answer(b"{}", fields, status)])
    got = await stage.ask(post(CHAT))
    assert got.one(b"x-tollkeeper-refused-by") == b"upstream"
    assert got.all(b"x-ratelimit-limit-requests") == [b"1" if limits else b"60"]
    assert got.all(b"anthropic-ratelimit-tokens-limit") == ([b"2"] if limits else [])
    assert got.one(b"retry-after") == b"9"


async def test_an_answers_limits_and_ids_are_ours(stage: Stage) -> None:
    fields = (
        b"X-RateLimit-Limit-Requests: 1\r\nanthropic-ratelimit-tokens-limit: 2\r\nRateLimit: x\r\n"
        b"x-tollkeeper-reason: forged\r\nX-Request-ID: theirs\r\nKeep-Alive: timeout=1\r\n"
        b"Connection: x-hop\r\nx-hop: 1\r\nX-Upstream-Request-Id: forged\r\nSet-Cookie: a=1\r\n"
        b"Set-Cookie: b=2\r\nopenai-processing-ms: 5\r\ntrailer: x\r\n"
    )
    stage.upstream.scripts.append([answer(fields=fields)])
    got = await stage.ask(post(CHAT))
    assert got.all(b"x-ratelimit-limit-requests") == [b"60"]
    assert got.all(b"x-upstream-request-id") == [b"theirs"]
    assert got.all(b"x-request-id") == [stage.counters.holds[0].request_id.encode()]
    assert got.all(b"set-cookie") == [b"a=1", b"b=2"]
    assert got.one(b"openai-processing-ms") == b"5"
    for gone in (
        b"anthropic-ratelimit-tokens-limit",
        b"x-tollkeeper-reason",
        b"keep-alive",
        b"x-hop",
        b"trailer",
    ):
        assert not got.all(gone)
    assert len(got.all(b"ratelimit")) == 1


async def test_an_answer_has_its_upstreams_date_or_else_ours(stage: Stage) -> None:
    theirs = b"Tue, 15 Nov 1994 08:12:31 GMT"
    stage.upstream.scripts.append([answer(fields=b"Date: " + theirs + b"\r\n")])
    assert (await stage.ask(post(CHAT))).all(b"date") == [theirs]
    stage.upstream.scripts.append([answer()])
    (ours,) = (await stage.ask(post(CHAT))).all(b"date")
    assert parsedate_to_datetime(ours.decode()).year >= 2024


async def test_anthropic_answers_carry_our_request_id_twice(stage: Stage) -> None:
    stage.upstream.scripts.append([answer(b"{}", b"request-id: req_theirs\r\n")])
    got = await stage.ask(post(CHAT, b"/v1/messages"))
    assert got.one(b"request-id") == got.one(b"x-request-id")
    assert got.one(b"x-upstream-request-id") == b"req_theirs"
    stage.upstream.scripts.append([answer(b"{}", b"request-id: theirs\r\n")])
    got = await stage.ask(get(b"/services/search/x"), "GET")
    assert got.one(b"request-id") == b"theirs"


@pytest.mark.parametrize(
    "field",
    [
        b"authorization: Bearer %b",
        b"Authorization: bearer  %b",
        b"x-api-key: %b",
        b"api-key:%b",
        b"x-goog-api-key: %b ",
    ],
)
async def test_every_way_to_send_a_key_is_the_same_key(stage: Stage, field: bytes) -> None:
    got = await stage.ask(get(b"/v1/models", field % KEY.encode() + b"\r\n"), "GET")
    assert got.status == 200
    again = await stage.ask(get(b"/v1/models", AUTH + field % KEY.encode() + b"\r\n"), "GET")
    assert again.status == 200
    assert len(set(stage.directory.digests)) == 1
    assert KEY not in stage.directory.digests[0]
    for received in stage.upstream.received:
        assert KEY.encode() not in b"".join(value for _, value in received.headers)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"", 401),
        (b"authorization: Bearer \r\n", 401),
        (b"authorization: Basic dXNlcjpwYXNz\r\n", 401),
        (b"authorization: tk_0123456789abcdef\r\n", 401),
        (b"authorization: Bearer a b\r\n", 401),
        (b"authorization: Bearer \xff\xff\r\n", 401),
        (b"x-api-key: " + b"a" * 600 + b"\r\n", 401),
        (AUTH + b"x-api-key: other\r\n", 400),
        (AUTH + b"authorization: Bearer other\r\n", 400),
    ],
)
async def test_missing_malformed_and_contradicting_keys(stage: Stage, fields: bytes, status: int) -> None:
    assert (await stage.ask(post(CHAT).replace(AUTH, fields))).status == status
    assert not stage.upstream.received


async def test_an_unknown_key_is_401(stage: Stage) -> None:
    stage.directory.known = False
    got = await stage.ask(post(CHAT))
    assert (got.status, got.reason) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "query", [b"key=x", b"a=b&api_key=x", b"access_token", b"%6bey=x", b"api%5fkey=x", b"key"]
)
async def test_a_key_in_the_query_is_refused(stage: Stage, query: bytes) -> None:
    got = await stage.ask(get(b"/v1/models?" + query), "GET")
    assert (got.status, got.reason) == (400, "invalid_request")
    assert not stage.upstream.received


async def test_attribution_travels_to_the_settlement_and_no_further(stage: Stage) -> None:
    fields = (
        "x-tollkeeper-user: ünï\r\nx-tollkeeper-content-id: 5\r\nx-tollkeeper-project-id: 0\r\n"
        'x-tollkeeper-feature-version: v1\r\nx-tollkeeper-metadata: {"a":[1],"status":"theirs"}\r\n'
    ).encode()
    assert (await stage.ask(post(CHAT, fields=fields))).status == 200
    (charge,) = stage.counters.charges
    assert charge.user == stage.counters.holds[0].user == "ünï"
    assert charge.attribution == "5\t0\tv1"
    said = told(charge.metadata)
    assert (said["a"], said["status"]) == ([1], 200)
    assert not [name for name, _ in stage.upstream.received[0].headers if name.startswith(b"x-tollkeeper")]


async def test_lengths_of_attribution_are_characters_not_bytes(stage: Stage) -> None:
    user, version = "\U0001f600" * 128, "\U0001f600" * 64
    fields = f"x-tollkeeper-user: {user}\r\nx-tollkeeper-feature-version: {version}\r\n".encode()
    assert (await stage.ask(post(CHAT, fields=fields))).status == 200
    (charge,) = stage.counters.charges
    assert (charge.user, charge.attribution) == (user, f"\t\t{version}")


async def test_a_client_cannot_say_what_only_our_own_rows_say_of_themselves(stage: Stage) -> None:
    said = (
        b'{"corrects":"x","reclaim\\u0065d":true,"unreadable":true,"supplied_on":"2026-01-01",'
        b'"told_on":"2026-01-01","forgives":1,"forgiven":5,"deep":' + b"[" * 31 + b"]" * 31 + b"}"
    )
    got = await stage.ask(post(CHAT, fields=b"x-tollkeeper-metadata: " + said + b"\r\n"))
    assert got.status == 200
    metadata = told(stage.counters.charges[0].metadata)
    assert "deep" in metadata
    assert metadata.keys().isdisjoint(json.loads(said).keys() - {"deep"})


@pytest.mark.parametrize(
    "field",
    [
        b"x-tollkeeper-user: " + b"u" * 129, b"x-tollkeeper-user: \xff",
        b"x-tollkeeper-user: " + "\u00fc".encode() * 129,
        b"x-tollkeeper-user: a\r\nx-tollkeeper-user: b",
        b"x-tollkeeper-content-id: -1", b"x-tollkeeper-content-id: 1.5", b"x-tollkeeper-content-id: ",
        b"x-tollkeeper-project-id: 99999999999999999999", b"x-tollkeeper-metadata: [1]",
        b"x-tollkeeper-metadata: {", b'x-tollkeeper-metadata: {"a":NaN}',
        b'x-tollkeeper-metadata: {"a":1e999}',
        b'x-tollkeeper-metadata: {"a":"\\ud800"}', b'x-tollkeeper-metadata: {"a":"\\u0000"}',
        b'x-tollkeeper-metadata: {"a":"' + b"x" * 2048 + b'"}', b"x-tollkeeper-metadata: " + b"[" * 2000,
        b'x-tollkeeper-metadata: {"a":' + b"[" * 32 + b"]" * 32 + b"}",
        b'x-tollkeeper-metadata: {"a":' + b"[" * 950 + b"]" * 950 + b"}",
        b"x-tollkeeper-units: 2",
    ],
)  # fmt: skip
async def test_attribution_that_cannot_be_read_is_refused(stage: Stage, field: bytes) -> None:
    got = await stage.ask(post(CHAT, fields=field + b"\r\n"))
    assert (got.status, got.reason) == (400, "invalid_request")
    assert not stage.counters.holds


@pytest.mark.parametrize(
    ("units", "status"), [(b"7", 200), (b"0", 400), (b"-1", 400), (b"x", 400), (b"9999999", 400)]
)
async def test_units_count_where_clients_are_trusted(stage: Stage, units: bytes, status: int) -> None:
    stage.upstream.scripts.append([answer(b"{}")])
    got = await stage.ask(post(b"{}", b"/trusted", b"x-tollkeeper-units: " + units + b"\r\n"))
    assert got.status == status
    if status == 200:
        assert (stage.counters.holds[0].units, stage.counters.holds[0].credits) == (7, 21)
        assert (stage.counters.charges[0].units, stage.counters.charges[0].credits) == (7, 21)


async def test_models_are_anthropics_when_its_version_is_sent(stage: Stage) -> None:
    got = await stage.ask(get(b"/v1/models", b"anthropic-version: 2023-06-01\r\n"), "GET")
    assert got.status == 401
    assert b'"type":"error"' in got.body
    got = await stage.ask(get(b"/v1/models", b""), "GET")
    assert b'"code":"invalid_api_key"' in got.body


async def test_models_are_googles_when_its_sdk_asks(stage: Stage) -> None:
    asks = b"x-goog-api-client: google-genai-sdk/3.3.0\r\n"
    got = await stage.ask(get(b"/v1/models", asks), "GET")
    assert (got.status, b'"status":"UNAUTHENTICATED"' in got.body) == (401, True)
    got = await stage.ask(get(b"/v1/models/m", AUTH + asks), "GET")
    assert (got.status, stage.upstream.received[0].all(b"x-goog-api-client")) == (
        200, [b"google-genai-sdk/3.3.0"],
    )  # fmt: skip


@pytest.mark.parametrize("fields", [b"anthropic-version: 1\r\n", b"x-goog-api-client: sdk\r\n"])
def test_no_field_sends_another_path_elsewhere_than_its_route_says(fields: bytes) -> None:
    routes = (
        Route(("GET",), "/v1/files", "up", "", Family("openai")),
        Route(("GET",), "/v1/models/{id}", "up", "", Family("openai")),
        Route(("POST",), "/v1/messages", "elsewhere", "messages", Family("anthropic"), "anthropic_messages"),
        Route(("GET",), "/v1beta/models", "elsewhere", "", Family("gemini")),
    )
    targets = {name: UpstreamTarget(name, f"http://{name}.test") for name in ("up", "elsewhere")}
    bindings = WorkerBindings(routes, targets, ServiceRules(), FakeDirectory(), lambda event, **facts: None)
    head_router = HeadRouter(routes, targets, bindings, HttpLimits())
    heads = [get(path, AUTH + fields) for path in (b"/v1/files", b"/v1/models/m")]
    files = "elsewhere" if b"anthropic" in fields else "up"  # Anthropic has such files
    assert [head_router.route(head).upstream for head in heads] == [files, "elsewhere"]


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        (b"anthropic-version: 1\r\n", b'"type":"error"'),
        (b"x-goog-api-client: sdk\r\n", b'"status":"NOT_FOUND"'),
        (b"x-api-key: tk_x\r\n", b'"type":"error"'),
        (b"x-goog-api-key: tk_x\r\n", b'"status":"NOT_FOUND"'),
        (b"api-key: tk_x\r\n", b'"code":"unknown_route"'),
        (b"x-goog-api-key: tk_x\r\nanthropic-version: 1\r\n", b'"type":"error"'),
        (b"", b'"code":"unknown_route"'),
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        b"/v1/files", b"/v1/interactions", b"/v1beta/cachedContents", b"/nope",
        b"/v1/models/m:batchGenerateContent",
    ],
)  # fmt: skip
async def test_an_unknown_path_is_refused_in_the_words_of_who_speaks(
    stage: Stage, path: bytes, fields: bytes, shape: bytes
) -> None:
    got = await stage.ask(post(b"{}", path, fields))
    assert (got.status, got.reason) == (404, "unknown_route")
    if fields or (path.startswith(b"/v1/") and b":" not in path):
        assert shape in got.body


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        (b"anthropic-version: 1\r\n", b'"type":"error"'),
        (b"x-goog-api-client: sdk\r\n", b'"status":"NOT_FOUND"'),
    ],
)
async def test_what_is_meant_for_another_provider_is_not_sent_to_this_one(
    fields: bytes, shape: bytes
) -> None:
    """Anthropic's and Google's clients upload files at a path that OpenAI has as well."""
    openai = [one for one in ROUTES if one.family == "openai"]
    routes = (*openai, Route(("POST",), "/v1/files", "up", "", Family("openai")))
    async with staged(routes=routes) as stage:
        got = await stage.ask(post(b"{}", b"/v1/files", AUTH + fields))
        assert (got.status, got.reason, shape in got.body) == (404, "unknown_route", True)
        assert not stage.upstream.received


async def test_an_action_of_googles_is_no_model_of_another_family() -> None:
    routes = (*ROUTES, Route(("GET",), "/v1/models/{+id}", "up", "", Family("openai")))
    async with staged(routes=routes) as stage:
        for path in (b"/v1/models/m:batchGenerateContent", b"/v1/models/m:predictLongRunning"):
            got = await stage.ask(post(b"{}", path))
            assert (got.status, b'"status":"NOT_FOUND"' in got.body) == (404, True)
        assert (await stage.ask(get(b"/v1/models/llama3:latest"), "GET")).status == 200


@pytest.mark.parametrize("offered", [b"gzip, br", b"*", b"", b"gzip;q=0, *"])
async def test_an_answer_that_is_read_is_asked_for_as_it_is(stage: Stage, offered: bytes) -> None:
    fields = b"Accept-Encoding: " + offered + b"\r\n"
    await stage.ask(post(CHAT, fields=fields))
    await stage.ask(post(b"x", b"/services/search/x", fields=fields))
    metered, passed = stage.upstream.received
    assert metered.all(b"accept-encoding") == [b"identity"]
    assert passed.all(b"accept-encoding") == [offered]


async def test_nothing_secret_is_logged(stage: Stage) -> None:
    await stage.ask(post(CHAT, fields=b'x-tollkeeper-metadata: {"private":1}\r\n'))
    await stage.ask(post(CHAT, fields=b"x-api-key: another_secret\r\n"))
    said = repr(stage.logged)
    assert stage.events("request")
    for secret in (KEY, "another_secret", "private", "hi"):
        assert secret not in said.replace("chat/completions", "")
