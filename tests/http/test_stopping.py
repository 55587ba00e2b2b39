"""A gateway whose time for calls is over says so in each API's own words, and charges what was produced."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from typing import cast

import pytest

from gateway.core.calls.routes import Route, UpstreamTarget
from gateway.core.model import Family
from gateway.errors import StartError
from gateway.http.server.server import listen
from tests.http.fakes import ANSWER, CHAT, CHAT_STREAM, EVENT, ROUTES, STREAM_HEAD, answer, chunks, post
from tests.http.stage import Answer, Stage, staged
from tests.waiting import eventually

RESPONSES = Route(("POST",), "/v1/responses", "up", "chat", Family("openai"), "openai_responses")
GEMINI = Route(
    ("POST",), "/v1beta/models/{model}:streamGenerateContent", "up", "gemini", Family("gemini"),
    "gemini_stream",
)  # fmt: skip
ASKED = b'{"model":"m","max_output_tokens":9,"input":"hi","stream":true}'
CONTENTS = b'{"contents":[{"role":"user","parts":[{"text":"hi"}]}],"generationConfig":{"maxOutputTokens":9}}'
DELTA = (
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","sequence_number":4,"delta":"word "}\n\n'
)
BLOCK = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"word "}}\n\n'
)
PART = b'{"candidates":[{"content":{"parts":[{"text":"word "}],"role":"model"}}]}'
GEMINI_PATH = b"/v1beta/models/m:streamGenerateContent"
ARRAY_HEAD = STREAM_HEAD.replace(b"text/event-stream", b"application/json")
STOPPED = "This gateway is stopping"


async def stopped(stage: Stage, request: bytes, head: bytes, part: bytes) -> Answer:
    """What a client has of a stream without end whose gateway stops."""
    stage.upstream.scripts.append([head + chunks(part, end=False), 60.0])
    client = await stage.client()
    await client.send(request)
    await client.read_until(b"word ")
    await stage.plane.drain(0.1)
    return Answer(0, [], await client.until_close())


def last_event(got: Answer) -> tuple[str, dict[str, object]]:
    """Name and data of the last event, from a body whose last chunk came."""
    assert got.body.endswith(b"\r\n0\r\n\r\n"), "it was broken off"
    event = got.body.removesuffix(b"\r\n0\r\n\r\n").rpartition(b"\r\n")[2].decode()
    fields = dict(line.split(": ", 1) for line in event.strip().splitlines())
    data = json.loads(fields["data"])
    assert isinstance(data, dict)
    return fields.get("event", ""), data


def charged(stage: Stage) -> None:
    (charge,) = stage.counters.charges
    assert charge.tokens > 0
    assert len(stage.events("answer_cut")) == 1
    assert not stage.events("drain_incomplete")


async def test_an_openai_stream_ends_with_its_error() -> None:
    async with staged() as stage:
        name, data = last_event(await stopped(stage, post(CHAT_STREAM), STREAM_HEAD, EVENT))
        charged(stage)
    error = data["error"]
    assert isinstance(error, dict)
    assert (name, error["code"], error["type"]) == ("", "overloaded", "server_error")
    assert str(error["message"]).startswith(STOPPED)


async def test_a_stream_of_responses_ends_with_its_error_event() -> None:
    async with staged((*ROUTES, RESPONSES)) as stage:
        name, data = last_event(await stopped(stage, post(ASKED, b"/v1/responses"), STREAM_HEAD, DELTA))
        charged(stage)
    assert (name, data["type"], data["sequence_number"], data["code"]) == ("error", "error", 5, "overloaded")
    assert str(data["message"]).startswith(STOPPED)


async def test_an_anthropic_stream_ends_with_its_error_event() -> None:
    async with staged() as stage:
        name, data = last_event(await stopped(stage, post(CHAT_STREAM, b"/v1/messages"), STREAM_HEAD, BLOCK))
        charged(stage)
    error = data["error"]
    assert isinstance(error, dict)
    assert (name, data["type"]) == ("error", "error")
    assert str(error["message"]).startswith(STOPPED)


async def test_a_gemini_stream_ends_with_its_error() -> None:
    async with staged((*ROUTES, GEMINI)) as stage:
        asked = post(CONTENTS, GEMINI_PATH + b"?alt=sse")
        name, data = last_event(await stopped(stage, asked, STREAM_HEAD, b"data: " + PART + b"\n\n"))
        charged(stage)
    error = data["error"]
    assert isinstance(error, dict)
    assert (name, error["code"], error["status"]) == ("", 503, "UNAVAILABLE")


async def test_a_gemini_array_ends_with_its_error_as_an_element() -> None:
    async with staged((*ROUTES, GEMINI)) as stage:
        got = await stopped(stage, post(CONTENTS, GEMINI_PATH), ARRAY_HEAD, b"[" + PART + b",\r\n" + PART)
        charged(stage)
    assert got.body.endswith(b"]\r\n0\r\n\r\n")
    assert b'{"error":{"code":503' in got.body


@pytest.mark.parametrize("coding", [b"gzip"])
async def test_what_cannot_be_told_in_its_own_shape_is_broken_off(stage: Stage, coding: bytes) -> None:
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: %b\r\n\r\n" % coding)
    stage.upstream.scripts.append([head + chunks(b"\x1f\x8b\x08", end=False), 60.0])
    client = await stage.client()
    await client.send(post(CHAT_STREAM))
    await eventually(lambda: stage.upstream.received)
    await stage.plane.drain(0.1)
    assert not (await client.until_close()).endswith(b"0\r\n\r\n")
    assert len(stage.counters.settlements) == 1


@pytest.mark.parametrize("over", [False, True])
async def test_a_client_that_takes_nothing_is_left_behind(*, over: bool) -> None:
    """In the middle of a stream, and with a whole answer that it does not read: both are soon let go."""
    async with staged(linger_s=0.2, answer_held_bytes_max=1 << 20) as stage:
        piece = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 60_000)
        whole = answer(ANSWER.replace(b"hello", b"x" * 900_000))
        stream = [STREAM_HEAD, *[chunks(piece, end=False)] * 400, 60.0]
        stage.upstream.scripts.append([whole] if over else stream)
        client = await stage.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport can
        await client.send(post(CHAT if over else CHAT_STREAM))
        await eventually(lambda: any(one.blocked for one in stage.plane._connections))
        await eventually(lambda: not over or not stage.plane.calls)
        await stage.plane.drain(0.1)
        await eventually(lambda: stage.connections == 0)
        assert len(stage.counters.settlements) == 1
        assert not stage.events("drain_incomplete")


async def test_whoever_reads_late_has_the_end_of_a_stream_that_was_broken_off(stage: Stage) -> None:
    piece = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"word " * 12_000)
    stage.upstream.scripts.append([STREAM_HEAD, *[chunks(piece, end=False)] * 400, 60.0])
    client = await stage.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(post(CHAT_STREAM))
    await eventually(lambda: any(one.blocked for one in stage.plane._connections))
    draining = asyncio.create_task(stage.plane.drain(0.1))
    await eventually(lambda: stage.counters.settlements)
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    _, data = last_event(Answer(0, [], await client.until_close()))
    assert "error" in data
    await draining


async def test_a_call_that_is_being_admitted_ends_once_it_is(stage: Stage) -> None:
    """It is neither interrupted, which could leave its hold, nor sent on."""
    stage.counters.slow = True
    client = await stage.client()
    await client.send(post(CHAT))
    await eventually(lambda: stage.counters.admitting)
    draining = asyncio.create_task(stage.plane.drain(0.1))
    await eventually(lambda: stage.plane._stopping.closing)
    turns = stage.plane.clock.now + 0.5
    await eventually(lambda: stage.plane.clock.now > turns)
    ((wait, decision),) = stage.counters.admitting
    stage.upstream.scripts.append([60.0])
    wait.set(decision)
    assert (await client.answer()).status == 503
    await draining
    assert [one.charge for one in stage.counters.settlements] == [False]
    assert not stage.events("drain_incomplete")


# --- renewal ----------------------------------------------------------------------------
# The data plane is given another table and other limits while it serves.


async def test_what_was_renewed_is_in_force_for_the_next_request_and_what_runs_ends_as_it_began(
    stage: Stage,
) -> None:
    client = await stage.client()
    done = chunks(EVENT, b"data: [DONE]\n\n")
    stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, end=False), 0.2, done])
    await client.send(post(CHAT_STREAM))
    await eventually(lambda: stage.upstream.received)
    chat = next(route for route in ROUTES if route.path == "/v1/chat/completions")
    target = UpstreamTarget("up", f"http://127.0.0.1:{stage.upstream.port}", (("x-renewed", "yes"),))
    limits = replace(stage.plane.limits, body_bytes_max=1024)
    stage.plane.renew([chat], [target], limits)
    assert (await client.answer()).body.endswith(b"[DONE]\n\n")
    # The upstream that was left keeps no connection for a call that will not come.
    await eventually(lambda: stage.upstream_connections == 0)

    assert (await client.ask(post(CHAT))).status == 200
    assert (b"x-renewed", b"yes") in stage.upstream.received[-1].headers
    assert (await client.ask(post(CHAT, b"/v1/abort"))).status == 404
    assert (await stage.ask(post(CHAT + b" " * 1024))).status == 413
    assert stage.upstream_connections == 1
    stage.plane.renew([chat], [target], limits)
    assert stage.upstream_connections == 1  # nothing changed, so it is kept


async def test_a_table_that_does_not_fit_changes_nothing(stage: Stage) -> None:
    client = await stage.client()
    assert (await client.ask(post(CHAT))).status == 200
    with pytest.raises(StartError, match="no-such"):
        stage.plane.renew([replace(ROUTES[0], upstream="no-such")], [], stage.plane.limits)
    assert (await client.ask(post(CHAT))).status == 200
    assert stage.upstream_connections == 1


# --- listening --------------------------------------------------------------------------
# Clients who wait at the socket of a worker that accepts nobody are taken by another one.


WAITING = 100


class Greets(asyncio.Protocol):
    """Says hello and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody is there."""
        there = cast("asyncio.Transport", transport)
        there.write(b"hello")
        there.close()


def listening() -> socket.socket:
    made = socket.create_server(("127.0.0.1", 0), backlog=WAITING * 2)
    made.setblocking(False)
    return made


async def greeted(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_who_waits_at_a_dead_workers_socket_is_taken_again_and_again_until_it_is_closed() -> None:
    own, dead = listening(), listening()
    kept = dead.dup()  # as a supervisor holds it
    kept.setblocking(True)
    port = dead.getsockname()[1]
    here = await listen(Greets, [own], [dead])
    try:
        for _ in range(2):
            answers = await asyncio.gather(*(greeted(port) for _ in range(WAITING)))
            assert answers == [b"hello"] * WAITING
        assert await greeted(own.getsockname()[1]) == b"hello"
    finally:
        here.close()
    with socket.create_connection(("127.0.0.1", port)), kept.accept()[0], kept:
        pass  # whoever waits now is somebody else's


async def test_a_socket_that_nobody_listens_at_yet_troubles_nobody() -> None:
    own, later = listening(), socket.socket()
    later.setblocking(False)
    later.bind(("127.0.0.1", 0))
    held = later.dup()
    here = await listen(Greets, [own], [later])
    try:
        assert await greeted(own.getsockname()[1]) == b"hello"
        held.listen()
        assert await greeted(held.getsockname()[1]) == b"hello"
    finally:
        here.close()
        held.close()
