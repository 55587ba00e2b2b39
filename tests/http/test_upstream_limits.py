"""An upstream that has enough is left alone: who is told, for how long, at what cost, and who is not."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest

from gateway.core.accounts.refusals import read_batch
from gateway.core.calls.routes import UpstreamTarget
from gateway.core.model import Refused, Verdict
from gateway.errors import CountersUnavailable, RateLimited
from gateway.http.protocol.answer import LIMITED
from tests.http.fakes import CALLER, ROUTES, answer, get, post
from tests.http.stage import Answer, Stage, staged
from tests.waiting import eventually

BODY = b'{"error":{"message":"Rate limit reached"}}'
REFUSED_BY = b"x-tollkeeper-refused-by"
UNIFIED = (
    b"anthropic-ratelimit-unified-status: rejected\r\nanthropic-ratelimit-unified-reset: 1900000000\r\n"
    b"anthropic-ratelimit-unified-representative-claim: seven_day\r\n"
)


def enough(fields: bytes = b"retry-after: 30\r\n", status: bytes = b"429 Too Many Requests") -> bytes:
    return answer(BODY, fields, status)


def chat(model: str = "m", path: bytes = b"/v1/chat/completions", **more: object) -> bytes:
    document = {"model": model, "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
    return post(json.dumps(document | more).encode(), path)


async def refused(stage: Stage, fields: bytes = b"retry-after: 30\r\n", **more: bytes) -> Answer:
    """The first call: its upstream's own refusal."""
    stage.upstream.scripts.append([enough(fields, **more)])
    got = await stage.ask(chat())
    assert got.body == BODY
    assert got.one(REFUSED_BY) == b"upstream"
    return got


async def is_left_alone(stage: Stage, request: bytes | None = None) -> bool:
    """Whether another call is refused without its upstream having heard of it."""
    before = len(stage.upstream.received)
    got = await stage.ask(chat() if request is None else request)
    heard = len(stage.upstream.received) > before
    assert heard == (got.status == 200)
    return not heard


SPENT = b"retry-after: 30\r\nx-ratelimit-remaining-requests: 0\r\n"
SOME_LEFT = b"x-ratelimit-limit-tokens: 30000\r\nx-ratelimit-remaining-tokens: 30000\r\n"


@pytest.mark.parametrize("left", [b"", SOME_LEFT, SOME_LEFT.replace(b"x-rate", b"anthropic-rate")])
async def test_one_organization_silences_nobody_but_itself(left: bytes) -> None:
    """A call can be made to look small to us, and be too large for its upstream."""
    others = [replace(CALLER, organization_id=each, tenant_id=each, key_id=each) for each in (7, 8)]
    async with staged() as stage:
        await refused(stage, b"retry-after: 50\r\n" + left)
        assert await is_left_alone(stage)
        stage.directory.caller = others[0]
        assert not await is_left_alone(stage)
        await refused(stage, b"retry-after: 50\r\n" + left)  # now it is everybody's
        for stage.directory.caller in (CALLER, *others):
            assert await is_left_alone(stage)


async def test_nobody_asks_an_upstream_that_has_enough(stage: Stage) -> None:
    assert (await refused(stage, SPENT)).one(b"retry-after") == b"30"
    stage.directory.caller = replace(CALLER, organization_id=7, tenant_id=8, key_id=9)
    for _ in range(20):
        got = await stage.ask(chat())
        assert (got.status, got.reason, got.one(REFUSED_BY)) == (429, "rate_limited", b"upstream")
        assert 1 <= int(got.one(b"retry-after")) <= 30
        assert got.one(b"x-should-retry") == b"true"
        error = json.loads(got.body)["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "the upstream up" in error["message"]
        assert "the model m until 20" in error["message"]
    assert len(stage.upstream.received) == 1


async def test_it_holds_and_charges_nothing_and_is_told_and_counted(stage: Stage) -> None:
    await refused(stage)
    holds, settlements = len(stage.counters.holds), len(stage.counters.settlements)
    assert await is_left_alone(stage)
    assert (len(stage.counters.holds), len(stage.counters.settlements)) == (holds, settlements)
    assert len(stage.counters.heads) == len(stage.counters.let_go) == 1  # one of its sender's requests
    batch = read_batch(stage.refusals.take("w", 1))
    assert batch is not None
    [row] = batch.calls
    assert (row.status, row.reason, row.model) == (429, "rate_limited", "m")
    assert stage.tally.requests["/v1/chat/completions", 429, "rate_limited"].count == 1
    assert stage.tally.cooled_calls == {"up": 1}
    assert stage.tally.cooling_seconds == {"up": pytest.approx(30)}
    [told] = stage.events("upstream_limited")
    assert (told["upstream"], told["status"], told["seconds"]) == ("up", 429, 30)


async def test_when_the_time_is_over_the_next_call_goes(stage: Stage) -> None:
    await refused(stage, b"retry-after-ms: 150\r\n")
    answers = [await stage.ask(chat())]
    while answers[-1].status == 429:
        answers.append(await stage.ask(chat()))
    assert answers[-1].status == 200
    assert len(stage.upstream.received) == 2


async def test_other_models_services_and_accounts_are_asked(stage: Stage) -> None:
    await refused(stage)
    assert not await is_left_alone(stage, chat("n"))
    assert not await is_left_alone(stage, post(b"x", b"/services/search/x"))
    assert not await is_left_alone(stage, get(b"/v1/models/m"))
    assert await is_left_alone(stage, chat("m", b"/v1/abort"))  # another path to the same model
    limits, target = stage.plane.limits, stage.plane._upstreams["up"].target
    other = UpstreamTarget("up", target.base_url, (("authorization", "Bearer another"),))
    stage.plane.renew(ROUTES, [other], limits)
    assert not await is_left_alone(stage)
    renamed = [target, replace(target, name="too")]
    routes = tuple(replace(one, upstream="too") for one in ROUTES[:1]) + ROUTES[1:]
    stage.plane.renew(routes, renamed, limits)
    assert await is_left_alone(stage)  # another name of the same account


async def test_a_call_without_a_model_goes_by_its_service_and_a_free_one_by_its_path(stage: Stage) -> None:
    stage.upstream.scripts.append([enough()])
    await stage.ask(post(b"x", b"/services/search/a"))
    assert await is_left_alone(stage, post(b"x", b"/services/search/b"))
    stage.upstream.scripts.append([enough()])
    await stage.ask(get(b"/v1/models"))
    assert await is_left_alone(stage, get(b"/v1/models"))
    assert not await is_left_alone(stage, get(b"/v1/models/m"))
    assert not await is_left_alone(stage)


@pytest.mark.parametrize(
    ("fields", "status", "alone"),
    [
        (b"retry-after: 30\r\n", b"529 Overloaded", True),
        (b"retry-after: 30\r\n", b"503 Unavailable", False),
        (b"retry-after: 30\r\n", b"200 OK", False),
        (b"retry-after: 30\r\n", b"400 Bad", False),
        (b"", b"429 X", False),
        (b"retry-after: 30\r\nconnection: retry-after\r\n", b"429 X", False),
        (b"x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 6m0s\r\n", b"429 X", True),
        (UNIFIED, b"429 X", True),
        (b"retry-after: 30\r\nx-ratelimit-remaining-tokens: 11\r\n", b"429 X", False),
    ],
)
async def test_only_a_refusal_that_says_for_how_long_counts(
    stage: Stage, fields: bytes, status: bytes, alone: bool
) -> None:
    """A call of some twelve tokens, by our estimate."""
    stage.upstream.scripts.append([enough(fields, status)])
    await stage.ask(chat())
    assert await is_left_alone(stage) == alone


@pytest.mark.parametrize("said", [b"287441", b"999999999999999", b"Sun, 14 Nov 9999 22:13:50 GMT"])
async def test_nobody_is_silenced_beyond_the_maximum(said: bytes) -> None:
    """Who must wait for longer than a minute is told not to try again, and the rest is the upstream's own."""
    async with staged(upstream_cooling_s_max=5) as stage:
        assert (await refused(stage, b"retry-after: " + said + b"\r\n")).one(b"retry-after") == said
        got = await stage.ask(chat())
        assert (got.status, got.one(b"x-should-retry")) == (429, b"false")
        assert 1 <= int(got.one(b"retry-after")) <= 5


async def test_an_upstream_that_limits_single_callers_silences_nobody_else(stage: Stage) -> None:
    target = replace(stage.plane._upstreams["up"].target, limits="caller")
    stage.plane.renew(ROUTES, [target], stage.plane.limits)
    assert (await refused(stage)).one(b"retry-after") == b"30"
    assert not await is_left_alone(stage)


GEMINI = (
    b'{"error":{"code":429,"message":"Quota exceeded","status":"RESOURCE_EXHAUSTED","details":['
    b'{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[]},'
    b'{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34.07s"}]}}'
)


@pytest.mark.parametrize("coding", [b"", b"content-encoding: gzip\r\n"])
@pytest.mark.parametrize("path", [b"/v1beta/models/m:generateContent", b"/v1/chat/completions"])
async def test_gemini_says_it_in_its_body(path: bytes, coding: bytes) -> None:
    """Nobody else does."""
    body = b'{"contents":[{"parts":[{"text":"hi"}]}]}'
    request = post(body, path, b"accept-encoding: gzip\r\n") if b"beta" in path else chat()
    async with staged() as stage:
        sent = gzip.compress(GEMINI) if coding else GEMINI
        stage.upstream.scripts.append([answer(sent, coding, b"429 X")])
        assert (await stage.ask(request)).body == sent
        got = await stage.ask(request)
        if b"beta" not in path:
            assert got.status == 200
            return
        assert (got.status, got.one(REFUSED_BY)) == (429, b"upstream")
        assert 30 < int(got.one(b"retry-after")) <= 35
        assert json.loads(got.body)["error"]["details"][-1]["retryDelay"].endswith("s")


async def test_it_can_be_turned_off_while_it_serves() -> None:
    async with staged(upstream_cooling_s_max=0) as stage:
        await refused(stage)
        assert not await is_left_alone(stage)
    async with staged() as stage:
        await refused(stage)
        assert await is_left_alone(stage)
        plane = stage.plane
        limits = replace(plane.limits, upstream_cooling_s_max=0)
        plane.renew(ROUTES, [plane._upstreams["up"].target], limits)
        assert not await is_left_alone(stage)


async def test_its_own_limits_are_told_to_everybody_it_refuses_and_ours_are_not(stage: Stage) -> None:
    first = await refused(stage, UNIFIED + b"retry-after: 287441\r\nx-ratelimit-limit-requests: 7\r\n")
    second = await stage.ask(chat())
    for got in (first, second):
        assert got.one(b"anthropic-ratelimit-unified-status") == b"rejected"
        assert got.one(b"anthropic-ratelimit-unified-reset") == b"1900000000"
        assert got.one(b"anthropic-ratelimit-unified-representative-claim") == b"seven_day"
        assert got.one(b"x-ratelimit-limit-requests") == b"7"
        for ours in (b"ratelimit", b"ratelimit-policy", b"x-ratelimit-remaining-requests"):
            assert not got.all(ours)


async def test_an_upstream_that_tells_no_limits_is_not_given_ours(stage: Stage) -> None:
    """999,999 requests remaining beside a refusal would be a lie."""
    for status in LIMITED:
        stage.upstream.scripts.append([enough(b"", b"%d X" % status)])
        got = await stage.ask(chat())
        assert got.status == status
        assert not [name for name, _ in got.headers if b"ratelimit" in name]
        assert not got.all(b"x-tollkeeper-tokens-remaining")
    assert (await stage.ask(chat())).one(b"x-ratelimit-limit-requests") == b"60"


async def test_a_client_that_left_teaches_all_the_same(stage: Stage) -> None:
    client = await stage.client()
    stage.upstream.scripts.append([0.05, enough()])
    await client.send(chat())
    await eventually(lambda: stage.upstream.received)
    client.close()
    await eventually(lambda: stage.cooling.entries)
    assert await is_left_alone(stage)


# --- who refused, on every answer after which a client waits -----------------------------


async def told_by(stage: Stage, request: bytes | None = None) -> tuple[int, bytes]:
    got = await stage.ask(chat() if request is None else request)
    return got.status, got.one(REFUSED_BY)


async def test_the_gateway_says_what_it_refuses_itself() -> None:
    async with staged() as stage:
        counters, directory = stage.counters, stage.directory
        for verdict in (Verdict.UNVERIFIED, Verdict.STALE, Verdict.UNKNOWN_ACCOUNT):
            counters.decision = Refused(verdict)
            assert await told_by(stage) == (503, b"gateway")
        counters.decision = None
        assert await told_by(stage) == (503, b"gateway")
        directory.down = True
        assert await told_by(stage) == (503, b"gateway")
        directory.down, directory.trouble = False, CountersUnavailable()
        assert await told_by(stage) == (503, b"gateway")
    async with staged() as stage:
        stage.counters.settled = None  # nobody has what was not charged
        assert await told_by(stage) == (503, b"gateway")
    async with staged(upstream_connections_max=1, upstream_connections_share=1.0) as stage:
        stage.upstream.scripts.append([30.0])
        client = await stage.client()
        await client.send(chat())
        await eventually(lambda: stage.upstream.received)
        assert await told_by(stage) == (503, b"gateway")
        client.close()
        stage.upstream.scripts.clear()
    async with staged() as stage:
        stage.usage_refusal = RateLimited(retry_after_s=1)
        stage.usage_refusal.scope = "key"
        got = await stage.ask(get(b"/.tollkeeper/usage"), "GET")
        assert (got.status, got.one(REFUSED_BY)) == (429, b"key")
    async with staged(connections_max=1) as stage:
        first = await stage.client()
        assert (await first.ask(chat())).status == 200
        second = await stage.client()
        got = await second.answer()
        assert (got.status, got.one(REFUSED_BY)) == (503, b"gateway")


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_the_upstream_is_named_where_it_refuses(stage: Stage, status: int) -> None:
    forged = REFUSED_BY + b": gateway\r\n"
    stage.upstream.scripts.append([enough(forged, b"%d X" % status)])
    assert await told_by(stage) == (status, b"upstream")
    stage.upstream.scripts.append([enough(forged, b"500 X")])
    assert not (await stage.ask(chat())).all(REFUSED_BY)
