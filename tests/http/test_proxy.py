"""One request from its first line to its last byte."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest

from gateway.core.metering.meter import BEHIND_END_BYTES_MAX
from gateway.core.model import Refused, SettleResult, Verdict
from gateway.errors import CountersRefused, InternalError
from gateway.http.reply import LINES_MAX
from tests.http.fakes import (
    ANSWER,
    AUTH,
    CHAT,
    CHAT_STREAM,
    DONE_EVENT,
    EVENT,
    STREAM_HEAD,
    USAGE_BODY,
    USAGE_EVENT,
    answer,
    chunks,
    get,
    post,
    told,
)
from tests.http.stage import Close, Stage, staged
from tests.waiting import eventually


async def test_an_answer_passes_byte_for_byte_and_is_charged_as_reported(stage: Stage) -> None:
    got = await stage.ask(post(CHAT))
    assert (got.status, got.body) == (200, ANSWER)
    assert got.one(b"content-length") == b"%d" % len(ANSWER)
    (hold,), (charge,) = stage.counters.holds, stage.counters.charges
    assert charge.tokens == 12
    assert got.one(b"x-request-id").decode() == hold.request_id == charge.request_id
    assert uuid.UUID(hold.request_id).version == 7
    facts = told(charge.metadata)
    assert facts.pop("duration_ms") >= 0
    assert facts == {
        "model": "m", "streamed": False, "status": 200, "input": 7, "output": 5, "cached": 0,
        "reasoning": 0, "estimated": False,
    }  # fmt: skip
    (received,) = stage.upstream.received
    assert received.body == CHAT
    assert received.all(b"x-request-id") == [hold.request_id.encode()]


async def test_metered_answers_say_what_is_left(stage: Stage) -> None:
    got = await stage.ask(post(CHAT))
    assert got.one(b"x-ratelimit-remaining-requests") == b"59"
    assert got.one(b"x-ratelimit-reset-tokens") == b"1.2s"
    assert got.one(b"x-tollkeeper-tokens-remaining") == b"90"
    assert got.one(b"ratelimit-policy").startswith(b'"requests";q=60')


async def test_nothing_of_a_whole_answer_is_sent_before_it_is_settled(stage: Stage) -> None:
    stage.counters.silent = True
    client = await stage.client()
    await client.send(post(CHAT))
    await stage.settled()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.read(1), 0.1)
    stage.counters.waiting[0].set(SettleResult.DONE)
    assert (await client.answer()).body == ANSWER


async def test_the_end_of_a_stream_waits_for_its_settlement(stage: Stage) -> None:
    stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, EVENT, USAGE_EVENT, DONE_EVENT)])
    stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, end=False), 0.05, chunks(DONE_EVENT)])
    stage.counters.silent = True
    client = await stage.client()
    await client.send(post(CHAT_STREAM))
    await stage.settled()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.read_until(DONE_EVENT), 0.1)
    stage.counters.waiting[0].set(SettleResult.DONE)
    assert await client.read_until(DONE_EVENT + b"\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "end",
    [
        [chunks(b"data: [DO", end=False), 0.02, chunks(b"NE]\n\n", end=False)],
        [chunks(b"data:[DONE]\n", end=False), 0.02, chunks(b"\n", end=False)],
        [chunks(DONE_EVENT, end=False), 0.02, chunks(b": bye\n\n", end=False)],
        [chunks(DONE_EVENT, end=False), 0.02, b"0\r\n"],
    ],
    ids=["mark split", "mark without its empty line", "a comment behind", "half a terminator behind"],
)
async def test_the_end_of_a_stream_waits_however_it_comes(stage: Stage, end: list[bytes | float]) -> None:
    last = asyncio.Event()
    rest = b"\r\n" if end[-1] == b"0\r\n" else b"0\r\n\r\n"
    stage.upstream.scripts.append(
        [STREAM_HEAD + chunks(EVENT, USAGE_EVENT, end=False), 0.02, *end, last, rest]
    )
    stage.counters.silent = True
    client = await stage.client()
    await client.send(post(CHAT_STREAM))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.read_until(b"[DONE]"), 0.3)
    assert not stage.counters.settlements
    last.set()
    await stage.settled()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.read_until(b"[DONE]"), 0.1)
    stage.counters.waiting[0].set(SettleResult.DONE)
    assert b"[DONE]" in await client.read_until(b"\r\n0\r\n\r\n")


async def test_a_stream_passes_as_it_comes(stage: Stage) -> None:
    more = asyncio.Event()
    stage.upstream.scripts.append(
        [STREAM_HEAD + chunks(EVENT, end=False), more, chunks(EVENT, USAGE_EVENT, DONE_EVENT)]
    )
    client = await stage.client()
    await client.send(post(CHAT_STREAM))
    assert EVENT in await client.read_until(EVENT)
    assert not stage.counters.settlements
    more.set()
    rest = await client.read_until(b"0\r\n\r\n")
    assert DONE_EVENT in rest
    assert b'"usage"' not in rest  # nobody asked for it
    assert stage.counters.charges[0].tokens == 12
    assert b'"include_usage":true' in stage.upstream.received[0].body
    assert stage.upstream.received[0].all(b"accept-encoding") == [b"identity"]


async def test_an_unacknowledged_settlement_gives_no_complete_answer(stage: Stage) -> None:
    stage.counters.settled = None
    got = await stage.ask(post(CHAT))
    assert (got.status, got.reason) == (503, "counters_unavailable")
    stage.upstream.scripts.append(
        [STREAM_HEAD + chunks(EVENT, end=False), 0.05, chunks(EVENT, USAGE_EVENT, DONE_EVENT)]
    )
    cut = await stage.ask(post(CHAT_STREAM))
    assert cut.status == 200
    assert not cut.complete
    assert DONE_EVENT not in cut.body
    assert stage.tally.settlements_failed == 2


async def test_a_settlement_without_an_answer_is_bounded() -> None:
    async with staged(counters_s=0.1) as stage:
        stage.counters.silent = True
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason) == (503, "counters_unavailable")


async def test_a_route_may_settle_after_its_reply(stage: Stage) -> None:
    stage.counters.silent = True
    client = await stage.client()
    assert (await client.ask(post(CHAT, b"/v1/later"))).body == ANSWER
    await stage.settled()
    stage.counters.waiting[0].set(SettleResult.DONE)
    stage.counters.silent = False
    assert (await client.ask(post(CHAT))).status == 200


@pytest.mark.parametrize("script", [[Close()], [Close(reset=True)], [b"HTTP/1.1 200 OK\r\ncont", Close()]])
async def test_an_upstream_that_fails_before_its_head_charges_nothing(
    stage: Stage, script: list[Close]
) -> None:
    stage.upstream.scripts.append(list(script))
    got = await stage.ask(post(CHAT))
    assert (got.status, got.reason) == (502, "upstream_unreachable")
    assert len(stage.counters.releases) == 1
    assert not stage.counters.charges
    assert len(stage.upstream.received) == 1


async def test_an_upstream_that_refuses_connections_is_502() -> None:
    async with staged(base_url="http://127.0.0.1:9") as stage:
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason) == (502, "upstream_unreachable")
        assert len(stage.counters.releases) == 1


async def test_an_upstream_that_hangs_is_504_and_its_caller_pays_the_input_it_took() -> None:
    async with staged(upstream_first_byte_s=0.1, drain_s=0.1) as stage:
        stage.upstream.scripts.append([30.0])
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason) == (504, "upstream_timeout")
        await stage.settled(1)
        (charge,) = stage.counters.charges
        assert 0 < charge.tokens < len(CHAT)
        assert told(charge.metadata)["estimated"] is True


async def test_a_stream_that_dies_is_charged_as_seen_and_cut(stage: Stage) -> None:
    stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, EVENT, end=False), 0.05, Close()])
    got = await stage.ask(post(CHAT_STREAM))
    assert got.status == 200
    assert not got.complete
    assert got.body == EVENT * 2
    (charge,) = stage.counters.charges
    assert charge.tokens > 0
    assert told(charge.metadata)["estimated"] is True


async def test_an_upstream_that_stops_in_the_middle_is_cut() -> None:
    async with staged(upstream_idle_s=0.1, drain_s=0.1) as stage:
        stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, end=False), 30.0])
        got = await stage.ask(post(CHAT_STREAM))
        assert not got.complete
        await stage.settled(1)
        assert len(stage.counters.charges) == 1


async def test_a_whole_answer_that_breaks_off_is_a_clean_502(stage: Stage) -> None:
    stage.upstream.scripts.append([answer()[:-20], 0.05, Close()])
    got = await stage.ask(post(CHAT))
    assert (got.status, got.complete) == (502, True)
    assert len(stage.counters.settlements) == 1


async def test_an_answer_that_goes_on_behind_its_end_is_a_502_and_costs_what_it_reported(
    stage: Stage,
) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    behind = chunks(ANSWER, b" " * (BEHIND_END_BYTES_MAX + 1), end=False)
    stage.upstream.scripts.append([head + behind, asyncio.Event()])
    got = await stage.ask(post(CHAT))
    assert (got.status, got.reason) == (502, "upstream_unreachable")
    (charge,) = stage.counters.charges
    assert (charge.tokens, told(charge.metadata)["estimated"]) == (12, False)


async def test_a_whole_answer_that_stalls_is_a_504_and_charges_what_came() -> None:
    async with staged(upstream_idle_s=0.1, drain_s=0.1) as stage:
        stage.upstream.scripts.append([answer()[:-20], 30.0])
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason, got.complete) == (504, "upstream_timeout", True)
        await stage.settled(1)
        (charge,) = stage.counters.charges
        assert charge.tokens > 0


async def test_an_upstreams_own_error_passes_and_charges_nothing(stage: Stage) -> None:
    body = b'{"error":{"message":"no"}}'
    stage.upstream.scripts.append([answer(body, b"retry-after: 7\r\n", b"429 Too Many Requests")])
    got = await stage.ask(post(CHAT))
    assert (got.status, got.body, got.one(b"retry-after")) == (429, body, b"7")
    assert len(stage.counters.releases) == 1


async def test_an_error_to_a_stream_keeps_its_length(stage: Stage) -> None:
    stage.upstream.scripts.append([answer(b'{"error":{}}', b"", b"400 Bad Request")])
    got = await stage.ask(post(CHAT_STREAM))
    assert (got.status, got.body, got.one(b"content-length")) == (400, b'{"error":{}}', b"12")


async def test_usage_needs_a_key_and_no_upstream(stage: Stage) -> None:
    got = await stage.ask(get(b"/.tollkeeper/usage"), "GET")
    assert (got.status, got.body) == (200, USAGE_BODY)
    got = await stage.ask(get(b"/.tollkeeper/usage", b""), "GET")
    assert got.status == 401
    assert not stage.upstream.received
    assert not stage.counters.holds


async def test_free_routes_need_a_key_and_no_hold(stage: Stage) -> None:
    assert (await stage.ask(get(b"/v1/models"), "GET")).status == 200
    assert (await stage.ask(get(b"/v1/models", b""), "GET")).status == 401
    assert not stage.counters.holds
    assert len(stage.upstream.received) == 1


async def test_services_are_forwarded_by_their_rest_and_charged_by_the_unit(stage: Stage) -> None:
    stage.upstream.scripts.append([answer(b"\x00\xffbinary")])
    request = post(b"any bytes \x00", b"/services/search/deep/er?q=%20a&b", b"content-type: text/x\r\n")
    got = await stage.ask(request.replace(b"POST", b"PATCH", 1), "PATCH")
    assert (got.status, got.body) == (200, b"\x00\xffbinary")
    (received,) = stage.upstream.received
    assert (received.method, received.target) == (b"PATCH", b"/deep/er?q=%20a&b")
    assert received.body == b"any bytes \x00"
    (charge,) = stage.counters.charges
    assert (charge.tokens, charge.units, charge.credits) == (0, 1, 3)


async def test_an_upstream_may_say_how_many_units_it_used(stage: Stage) -> None:
    stage.upstream.scripts.append([answer(b"{}", b"x-usage-amount: 4\r\n")])
    await stage.ask(get(b"/services/search/"), "GET")
    assert (stage.counters.charges[0].units, stage.counters.charges[0].credits) == (4, 12)


async def test_unknown_services_and_token_services_are_not_served_by_the_request(stage: Stage) -> None:
    for path in (b"/services/nope/x", b"/services/chat/v1/chat/completions"):
        got = await stage.ask(get(path), "GET")
        assert (got.status, got.reason) == (404, "unknown_route")
    assert not stage.upstream.received


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model":"gpt-4o-mini"}', 200),
        (b'{"model":"m"}', 200),
        (b'{"model":"gpt-4o","models":["m","gpt-4o-mini"],"fallbacks":[{"model":"m"}]}', 200),
        (b'{"model":"GPT-4o"}', 403),
        (b'{"model":"gpt-4"}', 403),
        (b'{"model":"gpt-4o,o1-pro"}', 400),
        (b'{"model":"gpt-4o","models":["m","o1-pro"]}', 403),
        (b'{"model":"gpt-4o","fallbacks":[{"gpt-4o":["o1-pro"]}]}', 403),
        (b'{"model":"gpt-4o","m\\u006fdels":["o1-pro"]}', 403),
        (b'{"model":"gpt-4o","models":{"a":"m"}}', 400),
    ],
)
async def test_a_keys_list_holds_for_every_model_that_may_answer(
    stage: Stage, body: bytes, status: int
) -> None:
    stage.directory.caller = type(stage.directory.caller)(1, 2, 3, 4, "", frozenset({"m", "gpt-4o*"}))
    got = await stage.ask(post(body))
    assert (got.status, len(stage.upstream.received)) == (status, int(status == 200))


async def test_checks_come_in_their_order() -> None:
    async with staged(body_bytes_max=100) as stage:
        big = b"x" * 101
        path = b"/v1/chat/completions"
        head = b"POST %b HTTP/1.1\r\nhost: x\r\n%bcontent-length: 101\r\n\r\n"
        assert (await stage.ask(head % (b"/nope", b"") + big)).status == 404
        assert (await stage.ask((head % (path, b"") + big).replace(b"POST", b"PUT"), "PUT")).status == 405
        assert (await stage.ask(head % (path, b"x-tollkeeper-units: 1\r\n") + big)).status == 401
        assert (await stage.ask(head % (path, AUTH + b"x-tollkeeper-units: 1\r\n") + big)).status == 413
        got = await stage.ask(post(b"{}", path, b"x-tollkeeper-units: 1\r\n"))
        assert got.status == 400
        assert not stage.upstream.received


async def test_what_the_counters_say_of_their_insides_is_in_the_log_alone_and_not_for_each_call() -> None:
    said = "Redis refused: ERR user_function:575: bad argument script: on @user_function:575."
    async with staged() as stage:

        def refuses() -> None:
            raise CountersRefused(said)

        for _ in range(3):
            stage.directory.then = refuses
            got = await stage.ask(post(CHAT))
            assert (got.status, got.reason) == (503, "counters_unavailable")
            assert b"user_function" not in got.body
        told = [facts["why"] for what, facts in stage.logged if what == "counters_refused"]
        assert told == [said]


async def test_an_error_of_our_own_is_a_500_that_tells_nothing_but_where_to_look() -> None:
    def breaks() -> None:
        raise RuntimeError("secret of the inside")

    async with staged() as stage:
        stage.directory.then = breaks
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason) == (500, "internal_error")
        assert json.loads(got.body)["error"]["message"] == InternalError().message
        assert [fact["request_id"] for fact in stage.events("request_failed")] == [
            got.one(b"x-request-id").decode()
        ]
        assert "secret" not in str(stage.logged)
        stage.logged.clear()


async def test_an_error_of_our_own_is_a_request_of_its_caller() -> None:
    def breaks() -> None:
        raise ValueError("a piece of a prompt")

    async with staged() as stage:
        stage.directory.then = breaks
        for _ in range(2 * LINES_MAX):
            assert (await stage.ask(post(CHAT))).reason == "internal_error"
        assert len(stage.counters.heads) == len(stage.counters.let_go) == 2 * LINES_MAX
        lines = stage.events("request_failed")
        assert len(lines) == LINES_MAX
        assert "prompt" not in str(stage.logged)
        assert lines[0]["error"] == "ValueError"
        assert str(lines[0]["place"]).startswith("gateway.calls.terms:")
        stage.counters.by_head = Refused(Verdict.RATE_LIMITED)
        assert (await stage.ask(post(CHAT))).status == 429
        assert not stage.counters.holds
        stage.logged.clear()


async def test_an_error_of_our_own_in_a_late_body_is_counted_once() -> None:
    def breaks() -> None:
        raise RecursionError

    async with staged() as stage:
        stage.directory.then = breaks
        client = await stage.client()
        body = post(CHAT)
        await client.send(body[:-5])
        await eventually(lambda: stage.counters.heads)
        assert (await client.ask(body[-5:])).reason == "internal_error"
        assert len(stage.counters.heads) == len(stage.counters.let_go) == 1
        stage.logged.clear()


async def test_a_large_body_is_read_beside_the_loop_and_refused_as_a_small_one(stage: Stage) -> None:
    text = b'{"model":"m","messages":[{"role":"user","content":"%b"}]%b}'
    body = text % (b"x" * 2_000_000, b"")
    assert (await stage.ask(post(body))).status == 200
    assert stage.upstream.received[-1].body == body
    got = await stage.ask(post(text % (b"x" * 2_000_000, b',"n":1,"n":2')))
    assert (got.status, json.loads(got.body)["error"]["param"]) == (400, "n")


async def test_a_client_that_leaves_while_its_body_is_read_is_gone(stage: Stage) -> None:
    client = await stage.client()
    await client.send(post(b'{"model":"m","x":"' + b"x" * 8_000_000 + b'"}'))
    client.close()
    assert (await stage.ask(post(CHAT))).status == 200
