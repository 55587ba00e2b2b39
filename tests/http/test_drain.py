"""The answer of a client that left is read on as far as its charge needs, within bounds."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.accounts.outbox import read_facts
from tests.http.fakes import CHAT, CHAT_STREAM, answer, get, post
from tests.http.stage import Stage, staged
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
        facts = read_facts(stage.counters.charges[-1].metadata)
        assert facts is not None
        assert (facts.status, facts.total, facts.reason) == (200, 7, reason)


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
