"""Pages of other origins: what their browsers are told, and that nothing is unless settings name them."""

from __future__ import annotations

import pytest

from gateway.core.model import Refused, Verdict
from gateway.http.protocol.answer import EXPOSED
from tests.http.fakes import (
    ANSWER,
    AUTH,
    CHAT,
    CHAT_STREAM,
    EVENT,
    ROUTES,
    STREAM_HEAD,
    answer,
    chunks,
    get,
    post,
)
from tests.http.stage import Answer, Stage, staged

PAGE, OTHER = b"https://app.example.com", b"https://evil.example.com"
FROM = b"origin: " + PAGE + b"\r\n"
ORIGINS = frozenset({PAGE, b"http://localhost:5173"})
ALLOW, EXPOSE = b"access-control-allow-origin", b"access-control-expose-headers"


def cors_of(got: Answer) -> dict[bytes, bytes]:
    """The fields of CORS in an answer; none of them stands twice."""
    found = [(name, value) for name, value in got.headers if name.startswith(b"access-control-")]
    assert len(dict(found)) == len(found)
    return dict(found)


def preflight(path: bytes, origin: bytes = PAGE, more: bytes = b"") -> bytes:
    asked = b"access-control-request-method: POST\r\n" + more
    return b"OPTIONS %b HTTP/1.1\r\nhost: x\r\norigin: %b\r\n%b\r\n" % (path, origin, asked)


async def test_unless_it_is_set_nothing_is_told_and_an_upstreams_own_word_passes(stage: Stage) -> None:
    theirs = b"Access-Control-Allow-Origin: https://theirs.example\r\n"
    stage.upstream.scripts.append([answer(fields=theirs)])
    got = await stage.ask(post(CHAT, fields=FROM))
    assert cors_of(got) == {ALLOW: b"https://theirs.example"}
    assert not got.all(b"vary")
    assert stage.upstream.received[-1].all(b"origin") == [PAGE]
    refused = await stage.ask(preflight(b"/v1/chat/completions"), "OPTIONS")
    assert (refused.status, refused.reason, cors_of(refused)) == (405, "method_not_allowed", {})


async def test_every_answer_to_a_named_origin_may_be_read_by_its_page() -> None:
    async with staged(origins=ORIGINS) as stage:
        theirs = (
            b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\nvary: accept\r\n"
        )
        stage.upstream.scripts.append([answer(fields=theirs)])
        client = await stage.client()
        whole = await client.ask(post(CHAT, fields=FROM))
        assert whole.body == ANSWER
        assert whole.all(b"vary") == [b"accept", b"Origin"]
        again = await client.ask(post(CHAT, fields=FROM))  # by a head that is known by now
        stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, b"data: [DONE]\n\n")])
        streamed = await client.ask(post(CHAT_STREAM, fields=FROM))
        assert b"[DONE]" in streamed.body
        usage = await client.ask(get(b"/.tollkeeper/usage", AUTH + FROM), "GET")
        nowhere = await client.ask(get(b"/nope", FROM), "GET")
        stage.counters.decision = Refused(Verdict.RATE_LIMITED, now_ms=1000, until_ms=2000)
        limited = await client.ask(post(CHAT, fields=FROM))
        nobody = await client.ask(get(b"/v1/models", FROM), "GET")
        seen = [whole, again, streamed, usage, nowhere, limited, nobody]
        assert [one.status for one in seen] == [200, 200, 200, 200, 404, 429, 401]
        for one in seen:
            assert cors_of(one) == {ALLOW: PAGE, EXPOSE: b", ".join(EXPOSED)}
            assert one.all(b"vary")[-1] == b"Origin"
        ours = (
            b"x-tollkeeper-", b"x-ratelimit-", b"ratelimit", b"retry-after", b"x-should-retry",
            b"x-request-id",
        )  # fmt: skip
        names = {name for one in seen for name, _ in one.headers if name.startswith(ours)}
        assert names <= {*EXPOSED}
        assert {b"x-tollkeeper-reason", b"x-tollkeeper-refused-by", b"x-request-id"} <= names


async def test_other_origins_and_none_are_served_and_told_nothing_but_that_it_depends() -> None:
    async with staged(origins=ORIGINS) as stage:
        client = await stage.client()
        twice = FROM + b"origin: " + OTHER + b"\r\n"
        for fields in (b"", b"origin: " + OTHER + b"\r\n", b"origin: null\r\n", b"origin: *\r\n", twice):
            got = await client.ask(post(CHAT, fields=fields))
            assert (got.status, cors_of(got), got.all(b"vary")) == (200, {}, [b"Origin"])
        assert cors_of(await client.ask(post(CHAT, fields=FROM)))[ALLOW] == PAGE


async def test_any_origin_is_told_so_whoever_asks() -> None:
    async with staged(origins=frozenset({b"*"})) as stage:
        for fields in (b"", FROM):
            got = await stage.ask(post(CHAT, fields=fields))
            assert cors_of(got) == {ALLOW: b"*", EXPOSE: b", ".join(EXPOSED)}
            assert not got.all(b"vary")
        assert (await stage.ask(preflight(b"/v1/chat/completions", OTHER), "OPTIONS")).status == 204


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/services/search/x", b"/nope"])
async def test_a_preflight_is_answered_here_without_a_key(path: bytes) -> None:
    async with staged(origins=ORIGINS) as stage:
        names = b"authorization,x-stainless-os"
        asked = preflight(path, more=b"access-control-request-headers: " + names + b"\r\n")
        client = await stage.client()
        got = await client.ask(asked, "OPTIONS")
        assert (got.status, got.body, got.all(b"content-length")) == (204, b"", [])
        assert cors_of(got) == {
            ALLOW: PAGE,
            EXPOSE: b", ".join(EXPOSED),
            b"access-control-allow-methods": b"POST",
            b"access-control-allow-headers": names,
            b"access-control-max-age": b"7200",
        }
        assert b", ".join(got.all(b"vary")).split(b", ") == [
            b"Access-Control-Request-Method", b"Access-Control-Request-Headers", b"Origin",
        ]  # fmt: skip
        assert (await client.ask(post(CHAT, fields=FROM))).status == 200  # on the same connection
        assert [one.method for one in stage.upstream.received] == [b"POST"]
        assert stage.tally.requests["preflight", 204, ""].count == 1
        assert not stage.tally.refusals


async def test_what_is_no_preflight_of_a_named_origin_goes_its_usual_way() -> None:
    async with staged(origins=ORIGINS) as stage:
        for asked in (
            preflight(b"/v1/chat/completions", OTHER),
            b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + FROM + b"\r\n",
        ):
            assert (await stage.ask(asked, "OPTIONS")).status == 405
        forwarded = b"OPTIONS /services/search/x HTTP/1.1\r\nhost: x\r\n" + AUTH + FROM + b"\r\n"
        assert (await stage.ask(forwarded, "OPTIONS")).status == 200
        assert stage.upstream.received[-1].method == b"OPTIONS"
        broken = preflight(b"/v1/chat/completions", more=b"content-length: x\r\n")
        assert (await stage.ask(broken, "OPTIONS")).status == 400


async def test_origins_may_change_while_it_serves() -> None:
    async with staged(origins=ORIGINS) as stage:
        client = await stage.client()
        assert cors_of(await client.ask(post(CHAT, fields=FROM)))
        renew(stage, frozenset({OTHER}))
        assert not cors_of(await client.ask(post(CHAT, fields=FROM)))
        renew(stage, frozenset())
        got = await client.ask(post(CHAT, fields=FROM))
        assert (cors_of(got), got.all(b"vary")) == ({}, [])


def renew(stage: Stage, origins: frozenset[bytes]) -> None:
    plane = stage.plane
    plane.renew(ROUTES, [plane._upstreams["up"].target], plane.limits, origins=origins)
