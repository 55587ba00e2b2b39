"""Who is blocked or over a limit is told so from the head alone, on every route."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import replace

import pytest

from gateway.core.model import USER_REQUIRED, LimitKind, Refused, Scope, Verdict
from gateway.errors import RateLimited, ServiceNotIncluded
from tests.core.calls.test_documents import of_pages, packed
from tests.features.caller_holds.test_authorized import Holds
from tests.http.fakes import AUTH, CALLER, CHAT, answer, chunks, get, post
from tests.http.stage import Client, Stage, staged
from tests.waiting import eventually

BLOCKED = Refused(Verdict.TENANT_BLOCKED, scope=Scope.TENANT)
BUSY = Refused(Verdict.CONCURRENCY_LIMITED, Scope.KEY, LimitKind.CONCURRENCY, 1, 1, 61_000, 1000)
LIMITED = Refused(Verdict.RATE_LIMITED, Scope.TENANT, LimitKind.REQUESTS, 1, 1, 61_000, 1000)
NOTHING_LEFT = Refused(Verdict.QUOTA_EXCEEDED, Scope.TENANT, LimitKind.QUOTA, 10, 10, 61_000, 1000)
TOLD = {
    Verdict.TENANT_BLOCKED: (403, "tenant_blocked"),
    Verdict.CONCURRENCY_LIMITED: (429, "concurrency_limited"),
    Verdict.RATE_LIMITED: (429, "rate_limited"),
}
HALF = post(CHAT)[:-5]
LONG_S = 60.0
TOO_LARGE = post(b"").replace(b"content-length: 0", b"content-length: 99999999999")
BROKEN_CHUNKS = post(b"").replace(b"content-length: 0\r\n", b"transfer-encoding: chunked\r\n") + b"zz\r\n"
# Whatever may be wrong with a request behind its head, its credential and its path.
BAD = {
    "not JSON": (post(b"{"), 400),
    "a name twice": (post(b'{"model":"m","model":"n","messages":[]}'), 400),
    "too large": (TOO_LARGE, 413),
    "broken chunks": (BROKEN_CHUNKS, 400),
    "a field": (post(CHAT, fields=b"x-tollkeeper-project-id: x\r\n"), 400),
    "compressed": (post(CHAT, fields=b"content-encoding: gzip\r\n"), 400),
    "units": (get(b"/services/search/x", AUTH + b"x-tollkeeper-units: 3\r\n"), 400),
}
GOOD = {
    "chat": post(CHAT),
    "half a body": HALF,
    "units": get(b"/services/search/x"),
    "free": get(b"/v1/models"),
    "free by id": get(b"/v1/models/m"),
    "free, Gemini": get(b"/v1beta/models/m"),
    "free with a body": post(b"x" * 1000, b"/free/x"),
    "free with half a body": post(b"x" * 1000, b"/free/x")[:-1],
    "free with a large body": post(b"x", b"/free/x").replace(
        b"content-length: 1", b"content-length: 1000000"
    ),
    "HEAD": get(b"/v1/models", method=b"HEAD"),
}


@pytest.mark.parametrize("decision", [BLOCKED, BUSY, LIMITED])
@pytest.mark.parametrize("name", [*BAD, *GOOD])
async def test_the_head_decides_first_whatever_comes_behind_it(name: str, decision: Refused) -> None:
    request = BAD[name][0] if name in BAD else GOOD[name]
    async with staged() as stage:
        stage.counters.by_head = stage.counters.decision = decision
        client = await stage.client()
        await client.send(request)
        got = await client.answer("HEAD" if name == "HEAD" else "POST")
        assert (got.status, got.reason) == TOLD[decision.verdict]
        assert not stage.upstream.received
        assert not stage.counters.settlements
        assert stage.upstream_connections == 0


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/.tollkeeper/authorize/60/v1/chat/completions"])
async def test_a_refused_call_opens_no_run(path: bytes) -> None:
    fields = b"x-tollkeeper-run: new\r\n"
    async with staged(holds=Holds()) as stage:
        stage.directory.caller = replace(CALLER, models=frozenset({"other"}))
        assert (await stage.ask(post(CHAT, path, fields=fields))).reason == "model_not_allowed"
        stage.directory.caller = CALLER
        stage.directory.refusal = ServiceNotIncluded()
        assert (await stage.ask(post(CHAT, path, fields=fields))).reason == "service_not_included"
        assert not stage.runs.asked
        stage.directory.refusal = None
        assert (await stage.ask(post(CHAT, path, fields=fields))).reason == "too_many_runs"
        assert [one.id for one in stage.runs.asked] == ["new"]


async def test_refusals_come_in_the_order_of_their_table() -> None:
    """One call is wrong in every way: what is put right shows the next row of docs/internals/request.md."""
    async with staged(base_url="http://127.0.0.1:9") as stage:
        directory, counters = stage.directory, stage.counters
        admitted = counters.decision
        directory.known = False
        directory.caller = replace(CALLER, user_header=USER_REQUIRED, models=frozenset({"other"}))
        directory.refusal = ServiceNotIncluded()
        counters.by_head = counters.decision = BLOCKED

        async def refused(request: bytes) -> str:
            return (await stage.ask(request)).reason

        twice = b"host: gateway\r\n"
        nowhere = post(b"{", b"/nope").replace(AUTH, b"")
        assert await refused(nowhere.replace(twice, twice * 2)) == "invalid_request"
        assert await refused(nowhere) == "unknown_route"
        assert await refused(post(b"{").replace(AUTH, b"")) == "invalid_api_key"
        assert await refused(post(b"{")) == "invalid_api_key"
        directory.known = True
        assert await refused(post(b"{")) == "tenant_blocked"
        counters.by_head, counters.decision = admitted, NOTHING_LEFT
        assert await refused(post(b"{")) == "invalid_request"
        assert await refused(post(CHAT)) == "user_required"
        directory.caller = replace(directory.caller, user_header=CALLER.user_header)
        assert await refused(post(CHAT)) == "model_not_allowed"
        directory.caller = CALLER
        assert await refused(post(CHAT)) == "service_not_included"
        directory.refusal = None
        entry = f"{stage.plane._upstreams['up'].accounts[0]} model m"
        stage.cooling.begin(entry, 30, (), time.monotonic())
        assert await refused(post(CHAT)) == "rate_limited"
        stage.cooling.entries.clear()
        assert await refused(post(CHAT)) == "quota_exceeded"
        counters.decision = admitted
        assert await refused(post(CHAT)) == "upstream_unreachable"


@pytest.mark.parametrize("name", BAD)
async def test_a_request_that_is_refused_by_its_body_costs_its_sender_a_request(name: str) -> None:
    request, status = BAD[name]
    async with staged() as stage:
        assert (await stage.ask(request)).status == status
        assert len(stage.counters.heads) == len(stage.counters.let_go) == 1
        assert not stage.counters.holds
        assert not stage.upstream.received


@pytest.mark.parametrize("name", ["model", "service"])
async def test_what_is_forbidden_by_its_body_waits_for_the_head_too(stage: Stage, name: str) -> None:
    if name == "model":
        stage.directory.caller = replace(CALLER, models=frozenset({"other"}))
    else:
        stage.directory.refusal = ServiceNotIncluded()
    assert (await stage.ask(post(CHAT))).status == 403
    assert len(stage.counters.heads) == len(stage.counters.let_go) == 1
    stage.counters.by_head = BLOCKED
    assert (await stage.ask(post(CHAT))).reason == "tenant_blocked"


async def test_the_usual_call_is_asked_about_once(stage: Stage) -> None:
    for request in (post(CHAT), get(b"/services/search/x"), post(b"x" * 1000, b"/services/search/x")):
        assert (await stage.ask(request)).status == 200
    assert not stage.counters.heads
    assert [one.raises for one in stage.counters.holds] == [False] * 3


async def test_a_body_that_is_not_here_yet_is_admitted_by_its_head_and_raised(stage: Stage) -> None:
    client = await stage.client()
    await client.send(HALF)
    await eventually(lambda: stage.counters.heads)
    assert not stage.counters.holds
    assert (await client.ask(post(CHAT)[-5:])).status == 200
    (head,), (hold,) = stage.counters.heads, stage.counters.holds
    assert head.request_id == hold.request_id
    assert (head.need, head.credits, hold.raises) == (0, 0, True)
    assert len(stage.counters.charges) == 1
    assert not stage.counters.let_go


# --- a body that is written behind its head ---------------------------------------------


async def split(stage: Stage, request: bytes, at: int = -5) -> Client:
    """A client that has sent the beginning of a request, which the gateway has read."""
    client, before = await stage.client(), stage.plane.calls
    await client.send(request[:at])
    await eventually(lambda: stage.plane.calls > before)
    return client


@pytest.mark.parametrize("parts", [1, 3])
async def test_a_body_that_comes_at_once_behind_its_head_is_asked_about_once(parts: int) -> None:
    request = post(CHAT)
    async with staged(body_grace_s=LONG_S) as stage:
        for _ in range(2):
            client = await split(stage, request, -len(CHAT))
            for at in range(parts - 1):
                await client.send(CHAT[at : at + 1])
            assert (await client.ask(CHAT[parts - 1 :])).status == 200
            assert (await client.ask(request)).status == 200
        assert not stage.counters.heads
        assert [one.raises for one in stage.counters.holds] == [False] * 4
        assert {one.body for one in stage.upstream.received} == {stage.upstream.received[0].body}


async def test_a_body_that_takes_longer_is_admitted_by_its_head_meanwhile() -> None:
    async with staged(body_grace_s=0.001) as stage:
        client = await split(stage, post(CHAT))
        await eventually(lambda: stage.counters.heads)
        assert (await client.ask(CHAT[-5:])).status == 200
        assert [one.raises for one in stage.counters.holds] == [True]


@pytest.mark.parametrize("which", ["large", "chunked", "expected", "while much is kept"])
async def test_what_is_no_small_body_on_its_way_is_asked_about_at_once(which: str) -> None:
    request = {
        "large": post(b" " * (256 * 1024 + 1)),
        "chunked": BROKEN_CHUNKS[:-4] + b"5\r\nhello",
        "expected": post(CHAT, fields=b"expect: 100-continue\r\n"),
        "while much is kept": post(CHAT),
    }[which]
    async with staged(body_grace_s=LONG_S, buffered_bytes_max=1, body_bytes_max=512 * 1024) as stage:
        kept = 256 * 1024 if which == "while much is kept" else 1
        stage.plane.buffers.add(CALLER, kept)
        await split(stage, request)
        await eventually(lambda: stage.counters.heads)
        stage.plane.buffers.release(CALLER, kept)


@pytest.mark.parametrize("decision", [BLOCKED, BUSY, LIMITED])
@pytest.mark.parametrize("name", [*(name for name in BAD if b"content-length" in BAD[name][0]), "chat"])
async def test_the_head_decides_first_where_its_body_is_written_behind_it(
    name: str, decision: Refused
) -> None:
    request = BAD[name][0] if name in BAD else post(CHAT)
    head, end, body = request.partition(b"\r\n\r\n")
    async with staged(body_grace_s=LONG_S) as stage:
        stage.counters.by_head = stage.counters.decision = decision
        client = await stage.client()
        await client.send(head + end)
        await client.send(body)
        got = await client.answer()
        assert (got.status, got.reason) == TOLD[decision.verdict]
        assert not stage.upstream.received


async def test_bodies_on_their_way_take_a_part_of_the_buffers_and_no_more() -> None:
    size = 64 * 1024
    async with staged(body_grace_s=LONG_S, buffered_bytes_max=16 * size, body_bytes_max=size) as stage:
        for _ in range(20):
            await split(stage, post(b" " * size), 1 - size)
        await eventually(lambda: len(stage.counters.heads) == 19)
        assert size < stage.plane.buffers.used < 2 * size
        assert not stage.plane.buffers.shed


async def test_a_client_that_leaves_before_its_body_has_cost_nothing() -> None:
    async with staged(body_grace_s=LONG_S) as stage:
        client = await split(stage, post(CHAT))
        assert stage.plane.buffers.used == len(CHAT)
        client.reset()
        await eventually(lambda: not stage.plane.calls)
        assert stage.plane.buffers.used == 0
        assert not stage.counters.heads
        assert not stage.counters.holds


async def test_a_raise_that_is_refused_gives_back_what_the_head_took(stage: Stage) -> None:
    stage.counters.decision = Refused(Verdict.QUOTA_EXCEEDED, Scope.TENANT, LimitKind.QUOTA, 9, 9, 0, 1000)
    client = await stage.client()
    await client.send(HALF)
    await eventually(lambda: stage.counters.heads)
    got = await client.ask(post(CHAT)[-5:])
    assert (got.status, got.reason) == (429, "quota_exceeded")
    assert len(stage.counters.let_go) == 1
    assert not stage.counters.settlements


@pytest.mark.parametrize("how", ["leaves", "times out", "breaks", "is late to the gateway's end"])
async def test_a_slot_is_given_back_however_a_late_body_ends(how: str) -> None:
    async with staged(body_s=0.2 if how == "times out" else 30.0) as stage:
        client = await stage.client()
        await client.send(HALF if how != "breaks" else BROKEN_CHUNKS[:-4])
        await eventually(lambda: stage.counters.heads)
        if how == "leaves":
            client.reset()
        elif how == "breaks":
            assert (await client.ask(b"zz\r\n")).status == 400
        elif how == "times out":
            assert (await client.answer()).status == 408
        else:
            await stage.plane.drain(0.1)
        await eventually(lambda: stage.counters.let_go)
        assert not stage.counters.holds


async def test_a_slot_whose_body_takes_long_is_kept_from_its_deadline() -> None:
    async with staged(watch_after_s=0.05) as stage:
        client = await stage.client()
        await client.send(HALF)
        await eventually(lambda: stage.counters.watched)
        assert (await client.ask(post(CHAT)[-5:])).status == 200
        assert stage.counters.watched[0] in stage.counters.unwatched


async def test_a_free_route_takes_a_request_and_a_slot_until_its_answer_ends(stage: Stage) -> None:
    go = asyncio.Event()
    stage.upstream.scripts.append([go, answer()])
    asked = asyncio.create_task(stage.ask(get(b"/v1/models"), "GET"))
    await eventually(lambda: stage.upstream.received)
    assert not stage.counters.let_go
    go.set()
    got = await asked
    assert got.status == 200
    assert not got.all(b"ratelimit")
    assert len(stage.counters.heads) == len(stage.counters.let_go) == 1


@pytest.mark.parametrize("body", [b"", b"x" * 1000])
async def test_a_client_of_a_free_route_that_leaves_costs_nothing(stage: Stage, body: bytes) -> None:
    stage.upstream.scripts.append([30.0])
    client = await stage.client()
    await client.send(post(body, b"/free/x"))
    await eventually(lambda: stage.upstream.received)
    client.reset()
    await eventually(lambda: stage.counters.let_go)
    assert not stage.counters.settlements
    await eventually(lambda: stage.upstream_connections == 0)


async def test_while_the_counters_are_away_nothing_is_read_or_forwarded(stage: Stage) -> None:
    stage.counters.by_head = None
    for request in (HALF, post(b"{"), get(b"/v1/models")):
        got = await stage.ask(request)
        assert (got.status, got.reason) == (503, "counters_unavailable")
    assert not stage.upstream.received


async def test_a_blocked_tenants_half_bodies_are_refused_at_once(stage: Stage) -> None:
    stage.counters.by_head = stage.counters.decision = BLOCKED
    for _ in range(14):
        client = await stage.client()
        await client.send(post(b"", fields=b"").replace(b"content-length: 0", b"content-length: 33554432"))
        client.writer.write(b" " * 1_000_000)
        got = await client.answer()
        assert (got.status, got.reason) == (403, "tenant_blocked")
        assert stage.plane.buffers.used == 0


async def test_a_large_body_that_its_head_refuses_takes_no_turn() -> None:
    heavy = post(CHAT[:-1] + b',"x":[' + b"[]," * 20_000 + b"[]]}")
    async with staged() as stage:
        assert (await stage.ask(heavy)).status == 200
        assert stage.plane.bodies.turns == 1
        stage.counters.by_head = stage.counters.decision = BLOCKED
        assert (await stage.ask(heavy)).status == 403
        assert (await stage.ask(post(CHAT))).status == 403
        assert stage.plane.bodies.turns == 1
        assert stage.plane.buffers.used == 0


async def test_pages_of_a_document_are_counted_in_turn_unless_its_head_refuses_it() -> None:
    data = base64.b64encode(packed(*of_pages(3))).decode()
    part = {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{data}"}}
    short = post(json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]}).encode())
    async with staged() as stage:
        assert (await stage.ask(short)).status == 200
        assert stage.plane.bodies.turns == 1
        assert stage.counters.holds[-1].ceiling >= 3 * (3_000 + 1_600)
        stage.counters.by_head = stage.counters.decision = BLOCKED
        assert (await stage.ask(short)).status == 403
        assert stage.plane.bodies.turns == 1


async def test_the_rest_of_refused_bodies_is_read_of_few_clients_at_once() -> None:
    async with staged(linger_s=60.0) as stage:
        stage.counters.by_head = BLOCKED
        large = post(b"").replace(b"content-length: 0", b"content-length: 33554432") + b" "
        for request in [large] * 6 + [large.replace(AUTH, b"")]:  # and of one that nobody knows
            client = await stage.client()
            await client.send(request)
            assert (await client.answer()).status == (403 if AUTH in request else 401)
        assert stage.plane.lingering.each == 2
        assert stage.plane.lingering.used == 3
        reads = [one._reading.paused == 0 for one in stage.plane._connections]
        assert sorted(reads) == [False] * 4 + [True] * 3


async def test_usage_answers_a_blocked_tenant_and_touches_no_limit(stage: Stage) -> None:
    stage.counters.by_head = BLOCKED
    assert (await stage.ask(get(b"/.tollkeeper/usage"), "GET")).status == 200
    assert not stage.counters.heads
    stage.usage_refusal = RateLimited(retry_after_s=7, retry_helps=True)
    got = await stage.ask(get(b"/.tollkeeper/usage"), "GET")
    assert (got.status, got.reason, got.one(b"retry-after")) == (429, "rate_limited", b"7")
    assert got.one(b"x-should-retry") == b"true"


async def test_a_chunked_body_of_a_free_route_is_admitted_before_it_is_forwarded(stage: Stage) -> None:
    request = post(b"", b"/free/x").replace(b"content-length: 0", b"transfer-encoding: chunked")
    client = await stage.client()
    await client.send(request)
    await eventually(lambda: stage.counters.heads)
    assert not stage.upstream.received
    assert (await client.ask(chunks(b"hello"))).status == 200
    assert stage.upstream.received[0].body == b"hello"
