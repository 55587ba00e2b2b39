"""The answer of a client that left is read on as far as its charge needs, within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import zlib
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from gateway.core.billing.money import CreditRates, ServicePricing
from gateway.core.calls.routes import Route
from gateway.core.model import Service
from gateway.http.routing.head import CallHead, ParsedHead
from gateway.http.routing.routed_head import RoutedHead
from gateway.http.server.connection import ClientConnection
from gateway.http.server.exchange import Exchange
from gateway.http.upstream.pool import Link
from tests.http.fakes import (
    AUTH,
    CHAT,
    CHAT_STREAM,
    DONE_EVENT,
    EVENT,
    STREAM_HEAD,
    USAGE_EVENT,
    answer,
    chunks,
    get,
    post,
    told,
)
from tests.http.stage import Close, Stage, Step, reset, staged
from tests.waiting import eventually

PIECE = b" " * 65_536
# What kernels and buffers between the two ends take beyond what is read.
BETWEEN_BYTES = 24 << 20


@pytest.mark.parametrize(
    "request_", [post(CHAT), post(CHAT_STREAM), post(b"{}", b"/v1beta/models/m:generateContent")]
)
@pytest.mark.parametrize("kind", [b"application/octet-stream", b"text/event-stream", b"application/json"])
async def test_reading_on_is_bounded_in_bytes(request_: bytes, kind: bytes) -> None:
    async with staged(drain_bytes_max=1 << 20) as stage:
        assert await left_in_the_middle(stage, request_, kind) < BETWEEN_BYTES


@pytest.mark.parametrize("request_", [get(b"/services/search/x"), post(CHAT, b"/services/search/x")])
async def test_nothing_is_read_on_where_the_charge_is_known(request_: bytes) -> None:
    async with staged(drain_bytes_max=1 << 30) as stage:
        assert await left_in_the_middle(stage, request_, b"text/plain") < BETWEEN_BYTES
        assert [charge.units for charge in stage.counters.charges] == [1]


@pytest.mark.parametrize(("leaves", "reason"), [(True, "client_gone"), (False, "")])
async def test_an_answer_read_to_its_end_says_whether_anybody_had_it(*, leaves: bool, reason: str) -> None:
    body = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        whole = answer(body)
        writer.write(whole[:-20])
        begun.set()
        await go_on.wait()
        writer.write(whole[-20:])

    async with staged() as stage:
        stage.upstream.handler = serve
        client = await stage.client()
        await client.send(post(CHAT))
        await begun.wait()
        if leaves:
            client.reset()
            await eventually(lambda: stage.connections == 0)
        go_on.set()
        await eventually(lambda: stage.counters.charges)
        facts = stage.facts()
        assert (facts.status, facts.total, facts.reason) == (200, 7, reason)


@pytest.mark.parametrize("reported", [True, False])
async def test_an_answer_that_was_told_and_reported_is_whole_though_its_connection_is_reset(
    *, reported: bool
) -> None:
    events = [EVENT, USAGE_EVENT, DONE_EVENT] if reported else [EVENT]
    async with staged() as stage:
        stage.upstream.scripts = [[STREAM_HEAD + chunks(*events, end=False), 0.1, Close(reset=True)]]
        client = await stage.client()
        await client.send(post(CHAT_STREAM))
        got = await client.answer()
        await stage.settled(1)
        facts = stage.facts()
        assert (got.complete, facts.reason, facts.estimated) == (
            (True, "", False) if reported else (False, "answer_cut", True)
        )
        if reported:
            assert facts.total == 12


@pytest.mark.parametrize("request_", [CHAT, CHAT_STREAM])
async def test_a_reset_behind_a_good_head_costs_a_caller_that_left_its_input(request_: bytes) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STREAM_HEAD)
        begun.set()
        await go_on.wait()
        reset(writer)

    for leaves in (True, False):
        async with staged() as stage:
            stage.upstream.handler = serve
            client = await stage.client()
            await client.send(post(request_))
            await begun.wait()
            if leaves:
                client.reset()
                await eventually(lambda: stage.connections == 0)
            go_on.set()
            await eventually(lambda: stage.counters.settlements)
            assert [charge.tokens > 0 for charge in stage.counters.charges] == [True] * leaves
            begun.clear()
            go_on.clear()


async def left_in_the_middle(stage: Stage, request: bytes, kind: bytes) -> int:
    """Leave behind the beginning of an answer without end; how many bytes its upstream could send."""
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind)
        while True:
            writer.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
            await writer.drain()
            sent += len(PIECE)

    stage.upstream.handler = serve
    client = await stage.client()
    await client.send(request)
    await eventually(lambda: sent)
    client.reset()
    await eventually(stage.upstream.lost.is_set)
    await eventually(lambda: stage.counters.settlements)
    return sent


# --- exhaustion -------------------------------------------------------------------------
# What happens to a stream that outgrows its hold, and to bodies no limit of size speaks of.


LONG = [STREAM_HEAD + chunks(*[EVENT] * 30, end=False), 0.02, chunks(EVENT, USAGE_EVENT, DONE_EVENT)]


async def test_a_stream_that_outgrows_its_hold_has_it_extended_and_finishes(stage: Stage) -> None:
    stage.counters.extension = (1 << 20, False, False)
    stage.upstream.scripts.append(LONG)
    got = await stage.ask(post(CHAT_STREAM))
    assert got.complete
    assert got.body == EVENT * 31 + DONE_EVENT
    assert len(stage.counters.outgrowths) == 1
    assert stage.counters.unwatched == stage.counters.watched
    assert stage.counters.charges[0].tokens == 12


async def test_an_exhausted_account_is_asked_once_and_its_call_finishes(stage: Stage) -> None:
    stage.counters.extension = (21, True, False)
    stage.upstream.scripts.append(LONG)
    got = await stage.ask(post(CHAT_STREAM))
    assert got.body == EVENT * 31 + DONE_EVENT
    assert len(stage.counters.outgrowths) == 1


async def test_a_plan_that_cuts_ends_the_stream_well_and_charges_what_came(stage: Stage) -> None:
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


async def test_what_counts_no_tokens_is_never_extended_for_them(stage: Stage) -> None:
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
            got = await stage.ask(post(CHAT_STREAM.replace(b":10,", b":1000,")))
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


# --- garbage ----------------------------------------------------------------------------
# What a request took is given back when it ends: nothing of it waits for the garbage collector. The
# collector comes after tens of thousands of objects; what waits for it are whole bodies and heads.


OURS = (ClientConnection, Exchange, Link, CallHead, ParsedHead, RoutedHead)
STREAM = STREAM_HEAD + chunks(EVENT, end=False)
REST = chunks(EVENT, USAGE_EVENT, DONE_EVENT)

ENDS: dict[str, tuple[bytes, list[Step]]] = {
    "an answer": (post(CHAT), []),
    "a stream": (post(CHAT_STREAM), [STREAM, 0.01, REST]),
    "no such route": (get(b"/nope"), []),
    "no key": (post(CHAT).replace(AUTH, b""), []),
    "no JSON": (post(b"{" + b" " * 1000), []),
    "too large": (post(b"x" * 70_000), []),
    "no HTTP": (b"GET / HTTP/1.1\r\nhost\r\n\r\n", []),
    "no answer": (post(CHAT), [Close()]),
    "an answer that breaks off": (post(CHAT_STREAM), [STREAM, 0.01, Close()]),
}


@pytest.mark.parametrize("end", ENDS)
async def test_nothing_of_a_request_waits_for_the_collector(end: str) -> None:
    request, script = ENDS[end]
    async with staged(body_bytes_max=65_536) as stage:
        with uncollected() as garbage:
            if script:
                stage.upstream.scripts.append(script)
            client = await stage.client()
            await client.ask(request)
            client.close()
            await over(stage)
        assert not garbage


@pytest.mark.parametrize("sent", [post(CHAT), post(CHAT)[:-1], post(CHAT)[:20]])
async def test_nothing_of_a_client_that_left_waits_for_the_collector(stage: Stage, sent: bytes) -> None:
    gate = asyncio.Event()
    stage.upstream.scripts.append([gate, Close()])
    with uncollected() as garbage:
        client = await stage.client()
        await client.send(sent)
        await eventually(lambda: stage.upstream.received or sent != post(CHAT))
        client.reset()
        gate.set()
        await over(stage)
    assert not garbage


async def over(stage: Stage) -> None:
    """Wait until the worker has neither clients nor calls."""
    await eventually(lambda: not stage.connections and not stage.plane.calls)
    await asyncio.sleep(0)


def is_ours(one: object) -> bool:
    return isinstance(one, OURS) or (isinstance(one, FrameType) and "gateway" in one.f_code.co_filename)


@contextlib.contextmanager
def uncollected() -> Iterator[list[Any]]:
    """What of ours only the collector could free of all that happens here."""
    found: list[Any] = []
    gc.freeze()  # what was there before is none of it, and not looked through
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += [type(one).__name__ for one in gc.garbage if is_ours(one)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
