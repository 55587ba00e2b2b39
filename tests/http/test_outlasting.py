"""An answer that outlasts its deadline: its client is told, and it is read on to the use that it reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.accounts.call_facts import CallFacts, read_facts
from gateway.core.calls.estimate import OUTPUT_PER_SECOND_FIRST
from tests.http.fakes import (
    CHAT,
    CHAT_STREAM,
    DONE_EVENT,
    EVENT,
    ROUTES,
    STREAM_HEAD,
    USAGE_EVENT,
    answer,
    chunks,
    post,
)
from tests.http.stage import Close, Stage, Step, staged
from tests.waiting import eventually

BILLED = answer(b'{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":32000}}')
LONG = CHAT.replace(b":10,", b":32000,")
STREAMED = CHAT_STREAM.replace(b":10,", b":32000,")


def facts(stage: Stage) -> CallFacts:
    found = read_facts(stage.counters.settlements[-1].metadata)
    assert found is not None
    return found


@pytest.mark.parametrize("late", [0.3, 0.6])
async def test_a_late_answer_is_a_504_at_once_and_is_charged_what_it_reports(late: float) -> None:
    async with staged(upstream_first_byte_s=0.1, upstream_idle_s=0.1) as stage:
        stage.upstream.scripts.append([late, BILLED[:-30], late, BILLED[-30:]])
        got = await stage.ask(post(LONG))
        assert (got.status, got.reason, got.one(b"connection")) == (504, "upstream_timeout", b"close")
        assert not stage.counters.settlements
        await stage.settled(1)
        said = facts(stage)
        assert (said.total, said.estimated, said.status, said.reason) == (
            32_012,
            False,
            504,
            "upstream_timeout",
        )
        await eventually(lambda: stage.plane.calls == 0)
        assert (await stage.ask(post(CHAT))).status == 200
        assert stage.counters.charges[-1].tokens == 12


async def test_the_rest_of_a_stream_behind_a_silence_is_charged_and_its_client_is_cut() -> None:
    rest = chunks(EVENT, USAGE_EVENT, DONE_EVENT)
    async with staged(upstream_idle_s=0.1) as stage:
        stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, end=False), 0.4, rest])
        got = await stage.ask(post(STREAMED))
        assert (got.status, got.complete, got.body) == (200, False, EVENT)
        assert not stage.counters.settlements
        await stage.settled(1)
        said = facts(stage)
        assert (said.total, said.estimated, said.status, said.reason) == (12, False, 200, "answer_cut")


SILENT: list[list[Step]] = [[30.0], [answer()[:-20], 30.0], [0.3, Close()], [0.3, b"no HTTP\r\n\r\n"]]


@pytest.mark.parametrize("script", SILENT)
async def test_a_report_that_never_comes_costs_output_by_time_up_to_the_maximum(script: list[Step]) -> None:
    for most in (b"3", b"32000"):
        body = CHAT.replace(b":10,", b':%b,"n":2,' % most)
        async with staged(upstream_first_byte_s=0.1, upstream_idle_s=0.1, drain_s=0.5) as stage:
            stage.upstream.scripts.append(list(script))
            assert (await stage.ask(post(body))).status == 504
            await stage.settled(1)
            said = facts(stage)
            least = int(2 * 0.2 * OUTPUT_PER_SECOND_FIRST)
            assert said.estimated
            assert (said.status, said.reason) == (504, "upstream_timeout")
            assert said.counts[4] == 6 if most == b"3" else least <= said.counts[4] < 32_000
            assert said.counts[0] > 0


async def test_what_a_late_upstream_refuses_costs_nothing() -> None:
    async with staged(upstream_first_byte_s=0.1) as stage:
        stage.upstream.scripts.append([0.3, answer(b'{"error":{"message":"no"}}', status=b"500 x")])
        assert (await stage.ask(post(LONG))).status == 504
        await stage.settled(1)
        assert not stage.counters.charges
        assert len(stage.counters.releases) == 1


async def test_a_route_that_aborts_reads_nothing_on_and_charges_by_time() -> None:
    async with staged(upstream_first_byte_s=0.3) as stage:
        stage.upstream.scripts.append([30.0])
        assert (await stage.ask(post(LONG, b"/v1/abort"))).status == 504
        await stage.settled(1)
        await eventually(stage.upstream.lost.is_set)
        assert facts(stage).counts[4] >= 0.1 * OUTPUT_PER_SECOND_FIRST


@pytest.mark.parametrize("outlasts", [False, True])
async def test_a_client_that_left_pays_by_time_where_the_drain_ends_unreported(*, outlasts: bool) -> None:
    first_byte = {"upstream_first_byte_s": 0.1} if outlasts else {}
    async with staged(drain_s=0.5, **first_byte) as stage:
        stage.upstream.scripts.append([30.0])
        client = await stage.client()
        await client.send(post(LONG))
        await eventually(lambda: stage.upstream.received)
        client.reset()
        await stage.settled(1)
        said = facts(stage)
        assert (said.status, said.reason, said.estimated) == (0, "client_gone", True)
        assert said.counts[4] >= 0.4 * OUTPUT_PER_SECOND_FIRST


async def test_a_stream_that_flows_until_its_drain_ends_costs_what_came() -> None:
    events = [part for _ in range(200) for part in (chunks(EVENT, end=False), 0.01)]
    async with staged(drain_s=0.4) as stage:
        stage.upstream.scripts.append([STREAM_HEAD, *events, 30.0])
        stage.upstream.expects_cut = True
        client = await stage.client()
        await client.send(post(STREAMED))
        await eventually(lambda: stage.upstream.received)
        client.reset()
        await stage.settled(1)
        assert facts(stage).counts[4] < 2 * 200


async def test_stopping_ends_what_is_read_on_for_nobody() -> None:
    async with staged(upstream_first_byte_s=0.1) as stage:
        stage.upstream.scripts.append([30.0])
        stage.upstream.expects_cut = True
        assert (await stage.ask(post(LONG))).status == 504
        assert stage.plane.calls == 1
        await stage.plane.drain(0.1)
        assert stage.plane.calls == 0
        assert facts(stage).counts[4] > 0


# A stream that ends in good order without its API's last word: what passes is as it came, the charge is not.
START = (
    b'data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":400,'
    b'"cache_read_input_tokens":600,"output_tokens":1}}}\n\n'
)
PONG = b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Pong "}}\n\n'
MESSAGES = b'{"model":"m","max_tokens":32000,"stream":true,"messages":[{"role":"user","content":"hi"}]}'


async def test_a_stream_without_its_last_word_is_charged_as_cut_passed_as_it_came_and_counted() -> None:
    routes = tuple(replace(one, usage="always") if one.path == "/v1/messages" else one for one in ROUTES)
    for end, cut in ((b"", True), (b'data: {"type":"message_stop"}\n\n', False)):
        async with staged(routes) as stage:
            body = START + PONG + end
            stage.upstream.scripts.append([STREAM_HEAD + chunks(body)])
            got = await stage.ask(post(MESSAGES, b"/v1/messages"))
            assert (got.status, got.complete, got.body) == (200, True, body)
            said = facts(stage)
            assert (said.status, said.estimated, said.reason) == (200, True, "answer_cut" if cut else "")
            assert said.counts[4] == 2 if cut else said.counts[4] == 32_000
            assert said.counts[:2] == ((400, 600) if cut else said.counts[:2])
            assert stage.tally.upstream_failures.get(("up", "unfinished"), 0) == cut
            assert [one["cause"] for one in stage.events("upstream_failed")] == ["unfinished"] * cut
