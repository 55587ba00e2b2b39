"""Clients that take no answers: what is kept for them is bounded, counted, and given back at every end."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from gateway.core.metering.meter import SLIM_BYTES_MAX
from tests.http.fakes import (
    ANSWER,
    CALLER,
    CHAT,
    CHAT_STREAM,
    EVENT,
    STREAM_HEAD,
    answer,
    chunks,
    get,
    post,
)
from tests.http.stage import Client, Stage, staged
from tests.waiting import eventually

LONG_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 4000)
SMALL = {"body_bytes_max": 4096, "buffered_bytes_max": 16_384}
# A share as small, of a whole that no single read of an upstream's socket fills.
SMALL_SHARE = {"body_bytes_max": 4096, "buffered_bytes_max": 4 << 20, "buffered_share": 0.001}
NOPE, FIRST_LINE = get(b"/nope", b""), b"HTTP/1.1 404 "
# Their answers are more than the kernel keeps for a socket nobody reads.
UNREAD = 3_000


def document(size: int) -> bytes:
    return ANSWER.replace(b"hello", b"x" * size)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A stream without end for whoever asks for one, else a small answer."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(len(CHAT_STREAM) if b"x-endless" in head else len(CHAT))
        if body == CHAT:
            writer.write(answer())
            continue
        writer.write(STREAM_HEAD)
        while True:
            writer.write(chunks(*[LONG_EVENT] * 16, end=False))
            await writer.drain()


async def unread(stage: Stage, request: bytes = b"") -> Client:
    """A client that asks and reads nothing, once it holds the worker up."""
    client = await stage.client()
    # Else the kernel keeps megabytes for it.
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport can
    await client.send(request or post(CHAT_STREAM, fields=b"x-endless: 1\r\n"))
    await eventually(lambda: any(one.blocked for one in stage.plane._connections))
    return client


async def test_an_answer_nobody_takes_counts_and_sheds_new_calls_while_it_goes_on() -> None:
    async with staged(**SMALL_SHARE) as stage:
        stage.upstream.handler = endless
        slow = await unread(stage)
        await eventually(lambda: stage.plane.buffers.used > 4096)
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason, got.one(b"retry-after")) == (503, "overloaded", b"1")
        assert got.one(b"x-tollkeeper-refused-by") == b"gateway"
        stage.directory.caller = replace(CALLER, organization_id=8, key_id=9)
        assert (await stage.ask(post(CHAT))).status == 200
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        before = await slow.reader.readexactly(8_000_000)
        assert before.count(b"data: ") > 1900
        slow.reset()
        await eventually(lambda: stage.plane.buffers.used == 0)


@pytest.mark.parametrize("end", ["leaves", "never reads", "upstream breaks off", "drain"])
async def test_what_was_kept_is_given_back_however_it_ends(end: str) -> None:
    limits = {"client_write_s": 0.3} if end == "never reads" else {}
    async with staged(drain_bytes_max=1 << 20, **limits) as stage:
        breaks = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            flood = asyncio.create_task(endless(reader, writer))
            await breaks.wait()
            flood.cancel()
            writer.transport.abort()

        stage.upstream.handler = serve
        client = await unread(stage)
        await eventually(lambda: stage.plane.buffers.used)
        if end == "leaves":
            client.reset()
        elif end == "upstream breaks off":
            breaks.set()
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            await client.until_close()
        elif end == "drain":
            await stage.plane.drain(0.1)
        await eventually(lambda: not stage.connections and not stage.plane.calls)
        assert stage.plane.buffers.used == 0
        breaks.set()


async def test_a_whole_answer_nobody_takes_counts_until_it_is_taken() -> None:
    async with staged(answer_held_bytes_max=1 << 20) as stage:
        stage.upstream.scripts.append([answer(document(900_000))])
        client = await unread(stage, post(CHAT))
        await eventually(lambda: not stage.plane.calls)
        assert stage.plane.buffers.used > 100_000
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await client.answer()).body == document(900_000)
        await eventually(lambda: stage.plane.buffers.used == 0)
        assert (await client.ask(post(CHAT))).status == 200


async def test_whoever_takes_an_answer_slowly_has_its_end_though_the_connection_closes() -> None:
    async with staged(answer_held_bytes_max=1 << 20, linger_s=0.05) as stage:
        stage.upstream.scripts.append([answer(document(900_000))])
        client = await unread(stage, post(CHAT, fields=b"connection: close\r\n"))
        await eventually(lambda: not stage.plane.calls)
        until = stage.plane.clock.now + 0.3
        await eventually(lambda: stage.plane.clock.now > until)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await client.answer()).body == document(900_000)


@pytest.mark.parametrize("fields", [b"", b"connection: close\r\n"])
async def test_whoever_never_takes_a_whole_answer_is_let_go(fields: bytes) -> None:
    async with staged(answer_held_bytes_max=1 << 20, client_write_s=0.2) as stage:
        stage.upstream.scripts.append([answer(document(900_000))])
        await unread(stage, post(CHAT, fields=fields))
        await eventually(lambda: not stage.connections)
        assert stage.plane.buffers.used == 0


async def test_no_request_is_served_before_the_answers_in_front_of_it_are_taken(stage: Stage) -> None:
    client = await unread(stage, NOPE * UNREAD)
    (connection,) = stage.plane._connections
    untaken = connection.transport.get_write_buffer_size()
    assert 0 < untaken <= 2 * stage.plane.limits.client_buffer_bytes_max
    assert len(stage.events("request")) < UNREAD * 2 // 3
    assert 0 < stage.plane.buffers.heads <= stage.plane.limits.heads_bytes_max
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    answers, read = 0, b""
    while answers < UNREAD:
        read = read[-len(FIRST_LINE) + 1 :] + await client.reader.read(1 << 20)
        answers += read.count(FIRST_LINE)
    await eventually(lambda: stage.plane.buffers.heads == 0)


async def test_requests_that_wait_unread_are_bounded_and_the_one_in_progress_goes_on() -> None:
    async with staged(heads_bytes_max=2000, head_free_bytes=0) as stage:
        gate = asyncio.Event()
        stage.upstream.scripts.append([gate, answer()])
        client = await stage.client()
        await client.send(post(CHAT) + get(b"/v1/models") * 50)
        await eventually(lambda: stage.upstream.received)
        assert stage.plane.buffers.heads == 0
        gate.set()
        got = await client.answer()
        assert (got.status, got.one(b"connection")) == (200, b"close")
        assert await client.is_closed()
        assert stage.plane.buffers.shed == 1


async def test_a_wrong_keys_body_is_not_kept_while_it_waits(stage: Stage) -> None:
    stage.directory.known = False
    stage.failures.free_max = 0
    client = await stage.client()
    await client.send(post(b"").replace(b"length: 0", b"length: 900000") + b" " * 50_000)
    await eventually(lambda: stage.failures.delayed)
    (connection,) = stage.plane._connections
    assert connection.body.take_parts() == b""
    assert (await client.answer()).status == 401


async def test_a_document_is_charged_the_same_while_memory_is_short() -> None:
    async with staged(**SMALL) as stage:
        whole = document(4 * SLIM_BYTES_MAX)
        stage.upstream.scripts.append([answer(whole)])
        got = await stage.ask(post(CHAT))
        assert got.body == whole
        assert stage.counters.charges[0].tokens == 12
        stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, end=False), 0.01, chunks(EVENT)])
        assert (await stage.ask(post(CHAT_STREAM))).complete
