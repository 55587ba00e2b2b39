"""What happens to a stream that outgrows its hold, and to bodies no limit of size speaks of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import zlib

import pytest

from gateway.core.billing.money import CreditRates, ServicePricing
from gateway.core.calls.routes import Route
from gateway.core.model import Service
from tests.http.fakes import (
    CHAT_STREAM,
    DONE_EVENT,
    EVENT,
    STREAM_HEAD,
    USAGE_EVENT,
    chunks,
    get,
    post,
    told,
)
from tests.http.stage import Stage, staged
from tests.waiting import eventually

LONG = [STREAM_HEAD + chunks(*[EVENT] * 30, end=False), 0.02, chunks(EVENT, USAGE_EVENT, DONE_EVENT)]
MESSAGES = b'{"model":"m","max_tokens":10,"stream":true,"messages":[]}'


async def test_a_stream_that_outgrows_its_hold_has_it_extended_and_finishes() -> None:
    async with staged() as stage:
        stage.counters.extension = (1 << 20, False, False)
        stage.upstream.scripts.append(LONG)
        got = await stage.ask(post(CHAT_STREAM))
        assert got.complete
        assert got.body == EVENT * 31 + DONE_EVENT
        assert len(stage.counters.outgrowths) == 1
        assert stage.counters.unwatched == stage.counters.watched
        assert stage.counters.charges[0].tokens == 12


async def test_an_exhausted_account_is_asked_once_and_its_call_finishes() -> None:
    async with staged() as stage:
        stage.counters.extension = (21, True, False)
        stage.upstream.scripts.append(LONG)
        got = await stage.ask(post(CHAT_STREAM))
        assert got.body == EVENT * 31 + DONE_EVENT
        assert len(stage.counters.outgrowths) == 1


async def test_a_plan_that_cuts_ends_the_stream_well_and_charges_what_came() -> None:
    async with staged() as stage:
        stage.counters.extension = (40, True, True)
        stage.upstream.scripts.append([STREAM_HEAD, *([chunks(EVENT, end=False), 0.001] * 500)])
        got = await stage.ask(post(CHAT_STREAM))
        assert got.complete
        assert got.body.endswith(DONE_EVENT)
        last = json.loads(got.body.split(b"\n\n")[-3].removeprefix(b"data: "))
        assert last["choices"][0]["finish_reason"] == "length"
        seen = got.body.count(EVENT)
        (charge,) = stage.counters.charges
        assert seen < 100
        assert charge.tokens >= max(40, seen)
        assert told(charge.metadata)["estimated"] is True
        await eventually(lambda: stage.upstream_connections == 0)


async def test_a_compressed_stream_that_nothing_covers_is_broken_off_and_charged_as_seen() -> None:
    packer = zlib.compressobj(wbits=31)
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    events = [packer.compress(EVENT) + packer.flush(zlib.Z_SYNC_FLUSH) for _ in range(500)]
    async with staged() as stage:
        stage.counters.extension = (40, True, True)
        stage.upstream.scripts.append(
            [head, *(part for event in events for part in (chunks(event, end=False), 0.001))]
        )
        got = await stage.ask(post(CHAT_STREAM))
        assert not got.complete
        seen = zlib.decompressobj(wbits=31).decompress(got.body).count(EVENT)
        (charge,) = stage.counters.charges
        assert seen < 100
        assert charge.tokens >= max(40, seen)
        await eventually(lambda: stage.upstream_connections == 0)


async def test_an_answer_that_is_no_document_does_not_pass_for_one_unit() -> None:
    pages = Route(("POST",), "/pages", "up", "search", meter="generic", units_pointer="/usage/pages")
    document = b'{"text":"%b","usage":{"pages":500}}' % (b"x" * 9_000_000)
    plain = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    async with staged((pages,)) as stage:
        stage.upstream.scripts += [
            [plain % len(document) + document],
            [plain % 20 + b"<usage>500</usage>  "],
            [plain % 2 + b"{}"],
        ]
        asked = post(b"x", b"/pages", b"accept-encoding: gzip\r\n")
        assert len((await stage.ask(asked)).body) == len(document)
        assert (await stage.ask(asked)).status == 502
        assert (await stage.ask(asked)).body == b"{}"
        await stage.settled(3)
        assert [charge.units for charge in stage.counters.charges] == [500, 1, 1]
        assert {one.all(b"accept-encoding")[0] for one in stage.upstream.received} == {b"identity"}


async def test_a_message_that_is_cut_ends_in_its_own_shape() -> None:
    start = (
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":'
        b'{"input_tokens":9,"output_tokens":1}}}\n\n'
    )
    block = b'event: content_block_start\ndata: {"type":"content_block_start","index":0}\n\n'
    delta = (
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","index":0,"delta":{"text":"word "}}\n\n'
    )
    async with staged() as stage:
        stage.counters.extension = (40, True, True)
        stage.upstream.scripts.append(
            [STREAM_HEAD + chunks(start, block, end=False), *([chunks(delta, end=False), 0.001] * 500)]
        )
        got = await stage.ask(post(MESSAGES, b"/v1/messages"))
        kinds = [line for line in got.body.decode().splitlines() if line.startswith("event:")][-3:]
        assert kinds == ["event: content_block_stop", "event: message_delta", "event: message_stop"]
        assert '"stop_reason":"max_tokens"' in got.body.decode()
        metadata = told(stage.counters.charges[0].metadata)
        assert metadata["input"] == 9
        assert metadata["output"] >= got.body.count(b'"word "')


async def test_what_counts_no_tokens_is_never_extended_for_them() -> None:
    async with staged() as stage:
        stage.upstream.scripts.append([STREAM_HEAD + chunks(*[EVENT] * 200)])
        await stage.ask(get(b"/services/search/x"), "GET")
        assert not stage.counters.outgrowths


async def test_a_stream_that_outgrows_its_credits_is_treated_as_one_without_tokens() -> None:
    price = ServicePricing(per_million={"*": CreditRates(1_000_000, 1_000_000)})
    for extension, cut in (((1 << 20, False, False), False), ((40, True, True), True)):
        async with staged() as stage:
            stage.directory.services["chat"] = Service(1, "chat", "consumption", False, pricing=price)
            assert stage.counters.decision is not None
            stage.counters.decision.held_credits = 25
            stage.counters.extension = extension
            stage.upstream.scripts.append(
                [STREAM_HEAD, *([chunks(EVENT, end=False), 0.001] * 100), chunks(DONE_EVENT)]
            )
            got = await stage.ask(post(CHAT_STREAM))
            assert stage.counters.outgrowths[0] >= 25
            assert stage.counters.watched[0].rate is not None
            assert (got.body.count(EVENT) < 100, got.complete, got.body.endswith(DONE_EVENT)) == (
                cut,
                True,
                True,
            )
            assert stage.counters.charges[0].credits >= min(100, stage.counters.watched[0].held)


async def test_a_slow_reader_that_hangs_up_is_drained_and_charged_in_full() -> None:
    async with staged(drain_tokens_max=10**6, drain_bytes_max=1 << 26) as stage:
        stage.upstream.scripts.append([STREAM_HEAD + chunks(*[EVENT * 1000] * 300, USAGE_EVENT, DONE_EVENT)])
        client = await stage.client()
        client.writer.transport.pause_reading()
        await client.send(post(CHAT_STREAM))
        await eventually(lambda: _blocked(stage))
        client.reset()
        await stage.settled()
        assert stage.counters.charges[0].tokens == 12


def _blocked(stage: Stage) -> bool:
    return any(connection.blocked for connection in stage.plane._connections)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_streamed_body_of_any_size_passes_without_being_kept(chunked: bool) -> None:
    async with staged(body_bytes_max=65_536) as stage:
        client = await stage.client()
        piece, count = b"x" * 65_536, 64
        framing = (
            b"transfer-encoding: chunked\r\n" if chunked else b"content-length: %d\r\n" % (len(piece) * count)
        )
        await client.send(post(b"", b"/services/search/upload").replace(b"content-length: 0\r\n", framing))
        for _ in range(count):
            await client.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            await client.send(b"0\r\n\r\n")
        got = await client.answer()
        assert got.status == 200
        assert len(stage.upstream.received[0].body) == len(piece) * count


async def test_a_streamed_body_that_drips_is_given_up() -> None:
    async with staged(body_s=0.2) as stage:
        stage.upstream.expects_cut = True
        client = await stage.client()
        await client.send(post(b"", b"/services/search/upload").replace(b"length: 0", b"length: 90000"))
        answer = asyncio.create_task(client.answer())
        while not answer.done():
            with contextlib.suppress(ConnectionError):  # it may be closed just now
                await client.send(b"x")
            await asyncio.wait({answer}, timeout=0.01)
        assert (await answer).status == 408
