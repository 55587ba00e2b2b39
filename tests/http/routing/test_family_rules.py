"""Beside the body of a metered call stands nothing that changes what is done, told or metered."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gateway.core.calls.routes import Route
from gateway.core.model import Family
from gateway.errors import InvalidRequest
from gateway.http.routing.routes import check_query
from tests.http.fakes import AUTH, CHAT, ROUTES, get, post
from tests.http.stage import Stage, staged

MESSAGES, GENERATE = b"/v1/messages", b"/v1beta/models/g:generateContent"
COMPLETIONS = b"/v1/chat/completions"


def typed(value: bytes) -> bytes:
    return b"content-type: " + value + b"\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        typed(b"application/json"),
        typed(b"Application/JSON"),
        typed(b"application/json; charset=utf-8"),
        typed(b"application/json;charset=UTF-8"),
        typed(b'application/json ; charset="Utf-8"'),
        typed(b"application/vnd.api+json"),
        b"connection: content-type\r\n" + typed(b"application/json"),
        typed(b"application/json") + b"content-encoding: identity\r\n",
    ],
)
async def test_json_in_utf8_is_forwarded_as_such(stage: Stage, fields: bytes) -> None:
    assert (await stage.ask(post(CHAT, fields=fields))).status == 200
    received = stage.upstream.received[0]
    assert received.all(b"content-type") == [b"application/json"]
    assert not received.all(b"content-encoding")


OTHER_TYPES = (
    b"application/json; charset=utf-7", b"application/json; charset=utf-16",
    b"application/json; charset=utf-32le", b"application/json; charset=latin-1",
    b"application/json; charset=us-ascii", b"application/json; charset=",
    b"application/json; charset=utf-8; charset=utf-7", b"application/json; charset=utf-7; charset=utf-8",
    b"application/json; charset='utf-8'", b'application/json; charset="utf-8',
    b'application/json; charset="utf-\\8"', b"application/json; x=y",
    b"application/json; boundary=x; charset=utf-8", b"application/json, text/plain", b"application/jsonl",
    b"application/x-ndjson", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x",
    b"text/json", b"text/plain", b"application/", b"json", b"", b"application/+json",
)  # fmt: skip


@pytest.mark.parametrize("path", [COMPLETIONS, MESSAGES, GENERATE])
async def test_a_body_of_another_type_or_charset_is_refused(stage: Stage, path: bytes) -> None:
    for value in OTHER_TYPES:
        got = await stage.ask(post(CHAT, path, typed(value)))
        assert (got.status, got.reason) == (400, "invalid_request"), value
        assert b"content-type" in got.body
    assert not stage.counters.holds
    assert not stage.upstream.received


async def test_two_content_types_are_refused_though_each_is_right(stage: Stage) -> None:
    got = await stage.ask(post(CHAT, fields=typed(b"application/json") * 2))
    assert (got.status, json.loads(got.body)["error"]["param"]) == (400, "content-type")


@pytest.mark.parametrize("coding", [b"gzip", b"identity, gzip", b"br", b"", b"utf-8"])
async def test_a_compressed_body_is_refused(stage: Stage, coding: bytes) -> None:
    got = await stage.ask(post(CHAT, fields=b"content-encoding: " + coding + b"\r\n"))
    assert (got.status, json.loads(got.body)["error"]["param"]) == (400, "content-encoding")


async def test_any_other_api_gets_its_content_type_and_query_as_they_came(stage: Stage) -> None:
    fields = typed(b"text/csv; charset=utf-7") + b"x-goog-fieldmask: a\r\nrange: bytes=0-1\r\n"
    query = b"?fields=a&$alt=proto&callback=x;y&&z"
    assert (await stage.ask(post(b"a,b", b"/services/search/x" + query, fields))).status == 200
    received = stage.upstream.received[0]
    assert received.target == b"/x" + query
    assert received.all(b"content-type") == [b"text/csv; charset=utf-7"]
    assert (received.all(b"x-goog-fieldmask"), received.all(b"range")) == ([b"a"], [b"bytes=0-1"])


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (MESSAGES, b""),
        (GENERATE, b""),
        (MESSAGES, b"beta=true"),
        (MESSAGES, b"beta=true&api-version=1"),
        (GENERATE, b"alt=sse"),
        (GENERATE, b"alt=json"),
        (GENERATE, b"alt=json&api-version=v1"),
        (COMPLETIONS, b"api-version=2024-10-21"),
    ],
)
async def test_the_parameters_of_a_family_pass(stage: Stage, path: bytes, query: bytes) -> None:
    body = CHAT.replace(b'"model":"m"', b'"model":"g"')
    assert (await stage.ask(post(body, path + b"?" + query))).status == 200
    assert stage.upstream.received[0].target == path + b"?" + query


OTHER_PARAMETERS = (
    (GENERATE, b"fields=candidates", b"fields"), (GENERATE, b"$fields=candidates", b"$fields"),
    (GENERATE, b"%66ields=candidates", b"%66ields"), (GENERATE, b"%24fields=candidates", b"%24fields"),
    (GENERATE, b"Fields=candidates", b"Fields"), (GENERATE, b"fields", b"fields"),
    (GENERATE, b"alt=sse&fields=x", b"fields"), (GENERATE, b"alt=sse;fields=x", b"alt"),
    (GENERATE, b"alt=proto", b"alt"), (GENERATE, b"alt=media", b"alt"), (GENERATE, b"alt=SSE", b"alt"),
    (GENERATE, b"alt=%73se", b"alt"), (GENERATE, b"alt=", b"alt"), (GENERATE, b"alt", b"alt"),
    (GENERATE, b"alt=sse&alt=json", b"alt"), (GENERATE, b"alt=sse&al%74=proto", b"al%74"),
    (GENERATE, b"$alt=proto", b"$alt"), (GENERATE, b"Alt=sse", b"Alt"),
    (GENERATE, b"callback=x", b"callback"), (GENERATE, b"$ct=x", b"$ct"),
    (GENERATE, b"$httpMethod=GET", b"$httpMethod"), (GENERATE, b"$.xgafv=2", b"$.xgafv"),
    (GENERATE, b"prettyPrint=false", b"prettyPrint"), (GENERATE, b"quotaUser=x", b"quotaUser"),
    (GENERATE, b"beta=true", b"beta"), (GENERATE, b"api-version=%26fields%3Dx", b"api-version"),
    (MESSAGES, b"beta=false", b"beta"), (MESSAGES, b"beta=TRUE", b"beta"), (MESSAGES, b"beta", b"beta"),
    (GENERATE, b"&", b""), (GENERATE, b"alt=sse&", b""), (GENERATE, b"=x", b""),
    (MESSAGES, b"alt=sse", b"alt"), (MESSAGES, b"beta=true&beta=false", b"beta"),
    (MESSAGES, b"beta[]=true", b"beta"), (MESSAGES, b"x=1", b"x"), (COMPLETIONS, b"stream=true", b"stream"),
    (COMPLETIONS, b"api_version=1", b"api_version"), (COMPLETIONS, b"model=other", b"model"),
)  # fmt: skip


async def test_any_other_parameter_of_a_metered_call_is_refused(stage: Stage) -> None:
    for path, query, name in OTHER_PARAMETERS:
        got = await stage.ask(post(CHAT, path + b"?" + query))
        assert (got.status, got.reason) == (400, "invalid_request"), query
        assert name in got.body
    assert not stage.counters.holds
    assert not stage.upstream.received


def test_a_route_may_take_more_parameters() -> None:
    route = Route(("POST",), "/x", "u", "s", Family("openai"), "openai_chat", queries=("provider", "region"))
    check_query(b"?provider=a%26b&region=x&api-version=1", route)
    with pytest.raises(InvalidRequest, match="api-version, beta, provider, region"):
        check_query(b"?Region=x", route)
    with pytest.raises(InvalidRequest, match="Route".lower()):
        check_query(b"?provider=x;region=y", route)


@pytest.mark.parametrize(
    "query",
    [
        b"limit=5&after_id=x&before_id=y",
        b"pageSize=5&pageToken=x%3D%3D",
        b"include[]=a&include[]=b",
    ],
)
async def test_a_list_may_be_asked_for_in_pages(stage: Stage, query: bytes) -> None:
    assert (await stage.ask(get(b"/v1/models?" + query), "GET")).status == 200
    assert stage.upstream.received[0].target == b"/v1/models?" + query


@pytest.mark.parametrize(
    "query",
    [b"$alt=json", b"%24httpMethod=POST", b"alt=proto", b"fields=x", b"a=1;fields=x", b"callback=x",
     b"x-http-method-override=POST", b"_method=DELETE", b"uploadType=media", b"token=x", b"x=1",
     b"limit=5&limit=6", b"Limit=5", b"l%69mit=5", b"limit=5;x", b"&&"],
)  # fmt: skip
async def test_no_other_parameter_passes_on_a_free_route(stage: Stage, query: bytes) -> None:
    got = await stage.ask(get(b"/v1beta/models/g?" + query), "GET")
    assert (got.status, got.reason) == (400, "invalid_request")


async def test_what_no_api_reads_of_a_list_is_left_out_of_its_path(stage: Stage) -> None:
    """Codex says its version there."""
    for said, sent in (
        (b"client_version=0.155.1", b""), (b"a=1;limit=9&client_version=0.155.1&limit=5", b"?limit=5"),
    ):  # fmt: skip
        assert (await stage.ask(get(b"/v1/models?" + said), "GET")).status == 200
        assert stage.upstream.received[-1].target == b"/v1/models" + sent
    for said in (b"limit=5&limit=6", b"alt=proto", b"limit=5;x"):
        assert (await stage.ask(get(b"/v1/models?" + said), "GET")).status == 400


CREDENTIALS = (
    b"key=x", b"Key=x", b"KEY=x", b"$key=x", b"%24key=x", b"%6bey=x", b"a=b;key=x", b"+key=x", b"key+=x",
    b"api_key=x", b"apikey=x", b"api-key=x", b"apiKey=x", b"access_token=x", b"$access_token=x",
    b"oauth_token=x", b"bearer_token=x", b"x-api-key=x", b"x-goog-api-key=x", b"authorization=x",
)  # fmt: skip


@pytest.mark.parametrize("path", [b"/v1/models", b"/services/search/x", b"/free/x"])
async def test_no_spelling_of_a_credential_in_the_query_passes(stage: Stage, path: bytes) -> None:
    for query in CREDENTIALS:
        got = await stage.ask(get(path + b"?" + query), "GET")
        assert (got.status, got.reason) == (400, "invalid_request"), query
    assert not stage.upstream.received


@pytest.mark.parametrize("query", [b"monkey=1", b"keys=1", b"token=1", b"key_id=1", b"x=key", b"pageToken=k"])
async def test_what_only_looks_like_a_credential_passes(stage: Stage, query: bytes) -> None:
    assert (await stage.ask(get(b"/services/search/x?" + query), "GET")).status == 200


MASKS = (
    b"x-goog-fieldmask", b"X-Goog-FieldMask", b"x-goog-request-params", b"x-goog-user-project",
    b"x-goog-visibilities", b"X_Goog_FieldMask", b"x-http-method", b"x-method-override", b"prefer", b"range",
    b"if-none-match", b"content-md5", b"content-digest", b"http-method-override", b"x-litellm-api-base",
    b"x-portkey-config", b"cf-aig-authorization", b"Helicone-Target-Url", b"ocp-apim-subscription-key",
    b"x-envoy-upstream-rq-timeout-ms", b"X_Envoy_Upstream_Rq_Per_Try_Timeout_Ms", b"x-server-timeout",
    b"x-envoy-expected-rq-timeout-ms", b"x-envoy-upstream-stream-duration-ms", b"Grpc-Timeout",
    b"x-request-timeout", b"x-request-deadline", b"x-gateway-inference-objective",
    b"x-llm-d-inference-fairness-id", b"openai-organization", b"OpenAI-Project", b"anthropic-workspace-id",
    b"anthropic-organization", b"anthropic-organization-id", b"anthropic-user-profile-id", b"x-hf-bill-to",
)  # fmt: skip


@pytest.mark.parametrize("path", [COMPLETIONS, MESSAGES, GENERATE])
async def test_a_field_that_masks_or_reshapes_does_not_pass(stage: Stage, path: bytes) -> None:
    body = CHAT.replace(b'"model":"m"', b'"model":"g"')
    for name in MASKS:
        fields = name + b": x\r\nanthropic-beta: y\r\nx-stainless-read-timeout: 1\r\n"
        assert (await stage.ask(post(body, path, fields))).status == 200
        received = stage.upstream.received[-1]
        assert not received.all(name.lower())
        assert received.all(b"anthropic-beta") + received.all(b"x-stainless-read-timeout") == [b"y", b"1"]


async def test_google_is_not_asked_for_another_form_of_its_answer(stage: Stage) -> None:
    accept = b"accept: application/x-protobuf\r\n"
    await stage.ask(post(b"{}", GENERATE, accept))
    await stage.ask(post(CHAT, fields=accept))
    assert [received.all(b"accept") for received in stage.upstream.received] == [
        [], [b"application/x-protobuf"],
    ]  # fmt: skip


async def test_a_free_route_keeps_its_fields_but_for_another_method(stage: Stage) -> None:
    fields = AUTH + b'if-none-match: "x"\r\nx-http-method: POST\r\nx-goog-fieldmask: a\r\n'
    assert (await stage.ask(get(b"/v1/models", fields), "GET")).status == 200
    received = stage.upstream.received[0]
    assert received.all(b"if-none-match") == [b'"x"']
    assert not received.all(b"x-http-method")
    assert not received.all(b"x-goog-fieldmask")


async def test_an_api_of_units_in_a_family_has_its_query_judged_too() -> None:
    route = replace(ROUTES[0], path="/v1/units", meter="generic")
    async with staged(routes=(route,)) as stage:
        assert (await stage.ask(post(b"{}", b"/v1/units?x=1"))).status == 400


async def test_a_body_that_is_not_written_again_keeps_its_type_and_digests() -> None:
    """Without its boundary nobody could read a form."""
    route = replace(ROUTES[0], path="/v1/audio/transcriptions", meter="generic")
    of_body = b"content-type: multipart/form-data; boundary=x\r\ncontent-digest: sha-256=:x:\r\n"
    async with staged(routes=(*ROUTES, route)) as stage:
        fields = of_body + b"range: bytes=0-1\r\nx-http-method: GET\r\n"
        form = b"--x\r\n\r\nbytes\r\n--x--\r\n"
        assert (await stage.ask(post(form, b"/v1/audio/transcriptions", fields))).status == 200
        await stage.ask(post(CHAT, fields=b"content-digest: sha-256=:x:\r\n"))
        raw, written = stage.upstream.received
        assert raw.body == form
        assert raw.all(b"content-type") == [b"multipart/form-data; boundary=x"]
        assert raw.all(b"content-digest") == [b"sha-256=:x:"]
        assert not raw.all(b"range") + raw.all(b"x-http-method")
        assert written.all(b"content-type") == [b"application/json"]
        assert not written.all(b"content-digest")


async def test_what_meters_a_route_says_whose_api_it_is() -> None:
    route = replace(ROUTES[7], path="/mine/{model}", family=Family("generic"))
    assert route.meter == "gemini_generate"
    async with staged(routes=(route,)) as stage:
        got = await stage.ask(post(b"{}", b"/mine/g?fields=candidates"))
        assert (got.status, got.reason) == (400, "invalid_request")
        assert (await stage.ask(post(b"{}", b"/mine/g", b"x-goog-fieldmask: x\r\n"))).status == 200
        assert not stage.upstream.received[0].all(b"x-goog-fieldmask")
