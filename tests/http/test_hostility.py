"""Bytes nobody would send, through sockets: the gateway stays up, honest and balanced."""

from __future__ import annotations

import asyncio
import contextlib
import random

import h11
import pytest

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
)
from tests.http.stage import Close, Stage, staged
from tests.waiting import eventually

NOISE = (
    b"", b"\r\n", b"\r", b"\n", b" ", b"\x00", b":", b"0", b"9", b"a", b"\xff", b",", b"\r\n\r\n", b"chunked",
    b"/..",
)  # fmt: skip
REQUESTS = (
    post(CHAT),
    post(CHAT_STREAM),
    get(b"/v1/models"),
    get(b"/services/search/x", method=b"HEAD"),
    post(b"abc", b"/services/search/y", b"expect: 100-continue\r\n"),
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    + AUTH
    + b"\r\n"
    + chunks(CHAT),
    b"PUT /services/search/z HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    + AUTH
    + b"\r\n"
    + chunks(b"a", b"bc"),
    b"GET /v1/models HTTP/1.0\r\nconnection: keep-alive\r\n" + AUTH + b"\r\n",
)
ANSWERS = (
    answer(),
    answer(fields=b"x-request-id: a\r\nconnection: close\r\n"),
    STREAM_HEAD + chunks(EVENT, USAGE_EVENT, DONE_EVENT),
    b"HTTP/1.1 100 Continue\r\n\r\n" + answer(),
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
)


def spoiled(chance: random.Random, data: bytes) -> bytes:
    for _ in range(chance.randrange(3)):
        at = chance.randrange(len(data))
        data = data[:at] + chance.choice(NOISE) + data[at + chance.randrange(3) :]
    return data


async def told(stage: Stage, chance: random.Random, data: bytes) -> None:
    """Send bytes in pieces; whatever comes back is HTTP."""
    client = await stage.client()
    with contextlib.suppress(ConnectionError):
        while data:
            size = chance.choice((1, 7, 60, 100_000))
            await client.send(data[:size])
            data = data[size:]
            await asyncio.sleep(0)
        client.writer.write_eof()
    raw = await client.until_close()
    while raw:
        oracle = h11.Connection(h11.CLIENT)
        oracle.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        oracle.send(h11.EndOfMessage())
        oracle.receive_data(raw)
        event = oracle.next_event()
        while isinstance(event, h11.InformationalResponse):
            event = oracle.next_event()
        assert isinstance(event, h11.Response) or event is h11.NEED_DATA, event
        return  # what follows may answer HEAD or be cut: its framing depends on the request


@pytest.mark.parametrize("seed", range(4))
async def test_spoiled_requests(seed: int) -> None:
    chance = random.Random(seed)
    async with staged(head_s=0.2, body_s=0.2, linger_s=0.2) as stage:
        stage.upstream.expects_cut = True
        for _ in range(60):
            data = b"".join(spoiled(chance, chance.choice(REQUESTS)) for _ in range(chance.randrange(1, 4)))
            await told(stage, chance, data)
        assert (await stage.ask(post(CHAT))).status == 200
        await eventually(lambda: len(stage.counters.settlements) == len(stage.counters.holds))


@pytest.mark.parametrize("seed", range(4))
async def test_spoiled_answers(seed: int) -> None:
    chance = random.Random(seed)
    async with staged(upstream_first_byte_s=0.1, upstream_idle_s=0.1, drain_s=0.1) as stage:
        for _ in range(60):
            raw = spoiled(chance, chance.choice(ANSWERS))
            cut = chance.randrange(len(raw) + 1)
            stage.upstream.scripts.append(
                [raw[:cut], 0.001, raw[cut:], *([Close()] if chance.random() < 0.5 else [])]
            )
            client = await stage.client()
            await client.send(chance.choice((post(CHAT), post(CHAT_STREAM), get(b"/services/search/x"))))
            got = await client.answer()
            assert b"forged" not in got.body
            stage.upstream.scripts.clear()
        # Its bounds are a tenth of a second here, which a busy machine may take itself.
        assert 200 in [(await stage.ask(post(CHAT))).status for _ in range(5)]
        await eventually(lambda: len(stage.counters.settlements) == len(stage.counters.holds))
        await eventually(lambda: stage.plane.calls == 0)


async def test_clients_that_leave_at_any_moment_leave_nothing_held() -> None:
    chance = random.Random(7)
    async with staged(drain_s=0.2) as stage:
        stage.upstream.expects_cut = True
        for _ in range(80):
            stage.upstream.scripts.append(
                [STREAM_HEAD, 0.002, chunks(EVENT, end=False), 0.002, chunks(EVENT, USAGE_EVENT, DONE_EVENT)]
            )
            client = await stage.client()
            request = post(CHAT_STREAM, chance.choice((b"/v1/chat/completions", b"/v1/abort")))
            await client.send(request[: chance.randrange(len(request) // 2, len(request) + 1)])
            await asyncio.sleep(chance.random() * 0.01)
            client.reset() if chance.random() < 0.5 else client.close()
        await eventually(lambda: stage.plane.calls == 0)
        await eventually(lambda: len(stage.counters.settlements) == len(stage.counters.holds))
        assert stage.connections == 0
