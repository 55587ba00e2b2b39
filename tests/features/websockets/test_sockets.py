"""Responses over a WebSocket: each message is a call, each event of its answer a message."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from gateway.core.calls.routes import Route
from gateway.core.model import Family, LimitKind, Refused, Scope, Verdict
from tests.http.fakes import AUTH, CALLER, KEY, STREAM_HEAD, answer, chunks, post
from tests.http.stage import WITHIN_S, Close, Stage, staged
from tests.waiting import eventually

ROUTES = (Route(("POST",), "/v1/responses", "up", "chat", Family("openai"), "openai_responses"),)
CREATE: dict[str, object] = {"type": "response.create", "model": "m", "input": "hi", "max_output_tokens": 10}
DELTA = {
    "type": "response.output_text.delta",
    "item_id": "i",
    "output_index": 0,
    "content_index": 0,
    "delta": "word",
}
ANY = b"AAAAAAAAAAAAAAAAAAAAAA==\r\n"
KEY_FIELD = {"authorization": f"Bearer {KEY}"}


def event(document: dict[str, Any]) -> bytes:
    return f"event: {document['type']}\ndata: {json.dumps(document)}\n\n".encode()


def completed(number: int = 1, kind: str = "completed", **more: object) -> dict[str, Any]:
    usage = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
    said = {
        "id": f"resp_{number}",
        "object": "response",
        "status": kind,
        "output": [],
        "usage": usage,
        **more,
    }
    return {"type": f"response.{kind}", "sequence_number": 9, "response": said}


def stream(*documents: dict[str, Any], end: bool = True) -> bytes:
    return STREAM_HEAD + chunks(*map(event, documents), end=end)


UNKNOWN = b'{"error":{"message":"Previous response not found.","code":"previous_response_not_found"}}'
WHOLE = stream(DELTA, completed())


@asynccontextmanager
async def connected(
    stage: Stage, headers: dict[str, str] = KEY_FIELD
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"http://127.0.0.1:{stage.port}/v1/responses", headers=headers, max_msg_size=0
        ) as socket,
    ):
        yield socket


async def received(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    said: dict[str, Any] = await socket.receive_json(timeout=WITHIN_S)
    return said


async def refused(socket: aiohttp.ClientWebSocketResponse) -> tuple[int, str, str]:
    """The status, the reason and the words of a refusal that is the next message."""
    said = await received(socket)
    assert said["type"] == "error"
    return said["status"], said["error"]["headers"]["x-tollkeeper-reason"], said["error"]["message"]


async def turn(socket: aiohttp.ClientWebSocketResponse, **more: object) -> list[str]:
    """The types of the events of one response, up to its last."""
    await socket.send_json(CREATE | more)
    types: list[str] = []
    while not types or types[-1] not in {
        "response.completed",
        "response.failed",
        "response.incomplete",
        "error",
    }:
        types.append((await received(socket))["type"])
    return types


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged(ROUTES) as made:
        yield made


async def test_each_message_on_a_responses_websocket_is_a_separate_call(stage: Stage) -> None:
    stage.upstream.scripts = [[WHOLE], [stream(DELTA, completed(2, "incomplete"))]]
    async with connected(stage) as socket:
        assert await turn(socket) == ["response.output_text.delta", "response.completed"]
        assert await turn(socket, previous_response_id=None) == [
            "response.output_text.delta", "response.incomplete",
        ]  # fmt: skip
        assert len(stage.counters.charges) == len(stage.counters.holds) == 2
    assert [one.tokens for one in stage.counters.charges] == [12, 12]
    for sent in stage.upstream.received:
        body = json.loads(sent.body)
        assert (sent.method, sent.target) == (b"POST", b"/v1/responses")
        assert (body["stream"], body.get("type")) == (True, None)
        assert sent.all(b"authorization") == [b"Bearer upstream-secret"]
        assert not [name for name, _ in sent.headers if name.startswith((b"sec-websocket", b"upgrade"))]
    assert [one["status"] for one in stage.events("request")] == [101, 200, 200]


async def test_openai_client_receives_responses_over_the_websocket(stage: Stage) -> None:
    stage.upstream.scripts = [[WHOLE], [WHOLE]]
    async with (
        AsyncOpenAI(api_key=KEY, base_url=f"http://127.0.0.1:{stage.port}/v1") as client,
        client.responses.connect() as socket,
    ):
        for _ in range(2):
            await socket.response.create(model="m", input="hi", max_output_tokens=10)
            seen = [(await socket.recv()).type for _ in range(2)]
            assert seen == ["response.output_text.delta", "response.completed"]
        await socket.response.create(model="", input="hi")
        said = await socket.recv()
        assert (said.type, said.error.param, said.status) == ("error", "model", 400)


@pytest.mark.parametrize(
    ("message", "status", "reason", "words"),
    [
        ("[]", 400, "invalid_request", "The body must be a JSON object."),
        (CREATE | {"type": "response.steer"}, 400, "invalid_request", 'type must be "response.create"'),
        ({"model": "m", "input": "hi"}, 400, "invalid_request", "no other event is taken"),
        (CREATE | {"stream": False}, 400, "invalid_request", "stream cannot be chosen"),
        (CREATE | {"background": True}, 400, "invalid_request", "background cannot be chosen"),
        (CREATE | {"generate": False}, 400, "invalid_request", "generate cannot be chosen"),
        (CREATE | {"stream_id": "a"}, 400, "invalid_request", "stream_id cannot be chosen"),
        (CREATE | {"Type": "x"}, 400, "invalid_request", "must be written type"),
        ('{"type":"response.create","model":"m","model":"n"}', 400, "invalid_request", "model appears twice"),
        (CREATE | {"model": "other"}, 403, "model_not_allowed", "may not use the model other"),
        (CREATE | {"previous_response_id": "resp_theirs"}, 404, "object_not_found", ""),
        (b"binary", 400, "invalid_request", "A message must be text"),
    ],
)
async def test_invalid_message_on_a_responses_websocket_is_refused_and_the_socket_stays_open(
    stage: Stage, message: object, status: int, reason: str, words: str
) -> None:
    stage.directory.caller = replace(CALLER, models=frozenset({"m"}))
    stage.upstream.scripts = [[WHOLE]]
    async with connected(stage) as socket:
        if isinstance(message, bytes):
            await socket.send_bytes(message)
        else:
            await socket.send_str(message if isinstance(message, str) else json.dumps(message))
        got = await refused(socket)
        assert got[:2] == (status, reason)
        assert words in got[2]
        assert not stage.upstream.received
        assert not stage.counters.holds
        assert await turn(socket) == ["response.output_text.delta", "response.completed"]


async def test_rate_limit_refuses_a_websocket_message_like_a_posted_call() -> None:
    async with staged(ROUTES) as stage, connected(stage) as socket:
        admitted = stage.counters.decision
        stage.counters.decision = Refused(
            Verdict.RATE_LIMITED, Scope.KEY, LimitKind.REQUESTS, 60, 60, 31_000, 1_000
        )
        await socket.send_json(CREATE)
        said = await received(socket)
        assert (said["status"], said["error"]["code"]) == (429, "rate_limit_exceeded")
        assert said["error"]["headers"]["retry-after"] == "30"
        stage.counters.decision = admitted
        stage.upstream.scripts = [
            [
                answer(
                    b'{"error":{"message":"busy","type":"t"}}',
                    b"X-Ratelimit-Limit-Requests: 9\r\nServer: x\r\n",
                    status=b"429 Busy",
                )
            ],
            [WHOLE],
        ]
        await socket.send_json(CREATE)
        said = await received(socket)
        assert (said["status"], said["error"]["message"]) == (429, "busy")
        headers = said["error"]["headers"]
        assert headers.pop("x-request-id")
        assert headers == {"x-ratelimit-limit-requests": "9", "x-tollkeeper-refused-by": "upstream"}
        assert await turn(socket) == ["response.output_text.delta", "response.completed"]
        assert len(stage.counters.charges) == 1


async def test_revoked_api_key_gets_no_further_response_and_an_unknown_key_opens_no_websocket(
    stage: Stage,
) -> None:
    stage.upstream.scripts = [[WHOLE]]
    async with connected(stage) as socket:
        await turn(socket)
        stage.directory.known = False
        await socket.send_json(CREATE)
        assert (await refused(socket))[:2] == (401, "invalid_api_key")
    for headers, status in ((KEY_FIELD, 401), ({}, 401)):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with connected(stage, headers):
                pass
        assert caught.value.status == status
    assert len(stage.upstream.received) == 1


async def test_responses_websocket_is_routed_as_the_present_configuration_says(stage: Stage) -> None:
    stage.upstream.scripts = [[WHOLE], [WHOLE]]
    plane, target = stage.plane, stage.plane._upstreams["up"].target
    fields = KEY_FIELD | {"x-tollkeeper-user": "ann", "x-passes": "1"}
    async with connected(stage, fields) as socket:
        await turn(socket)
        plane.renew((), [], plane.limits)
        await socket.send_json(CREATE)
        assert (await refused(socket))[:2] == (404, "unknown_route")
        plane.renew(ROUTES, [replace(target, headers=(*target.headers, ("X-Passes", "2")))], plane.limits)
        assert await turn(socket) == ["response.output_text.delta", "response.completed"]
    assert [one.all(b"x-passes") for one in stage.upstream.received] == [[b"1"], [b"2"]]
    assert [one.user for one in stage.counters.holds] == ["ann", "ann"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"", 426),
        (b"sec-websocket-version: 8\r\nsec-websocket-key: " + ANY, 426),
        (b"sec-websocket-version: 13\r\n", 400),
        (b"sec-websocket-version: 13\r\nsec-websocket-key: short\r\n", 400),
        (
            b"sec-websocket-version: 13\r\nsec-websocket-key: " + ANY + b"content-length: 2\r\n",
            400,
        ),
        (
            b"sec-websocket-version: 13\r\nsec-websocket-key: " + ANY + b"x-tollkeeper-user: \xff\r\n",
            400,
        ),
    ],
)
async def test_malformed_websocket_handshake_is_refused(stage: Stage, fields: bytes, status: int) -> None:
    client = await stage.client()
    head = b"GET /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    await client.send(head + AUTH + fields + b"\r\n")
    assert (await client.answer("GET")).status == status


# RFC 9110, 7.8: who does not name the upgrade in Connection has only forwarded it.
@pytest.mark.parametrize("fields", [b"", b"connection: keep-alive\r\n", b"connection: upgrades\r\n"])
async def test_websocket_upgrade_not_named_in_the_connection_header_opens_no_socket(
    stage: Stage, fields: bytes
) -> None:
    client = await stage.client()
    opens = b"upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: " + ANY
    await client.send(b"GET /v1/responses HTTP/1.1\r\nhost: x\r\n" + AUTH + fields + opens + b"\r\n")
    assert (await client.answer("GET")).status == 405
    assert not stage.upstream.received


async def test_websocket_upgrade_is_426_when_the_wsproto_library_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wsproto", None)
    async with staged(ROUTES) as stage:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with connected(stage):
                pass
        assert caught.value.status == 426


async def test_response_the_upstream_does_not_store_is_sent_again_as_input_on_the_same_socket(
    stage: Stage,
) -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "sealed"}
    lost = {"type": "reasoning", "id": "rs_2", "summary": []}
    call = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}
    done = [
        {"type": "response.output_item.done", "output_index": 0, "item": one} for one in (thought, lost, call)
    ]
    result = {"type": "function_call_output", "call_id": "c", "output": "4"}
    stage.upstream.scripts = [
        [stream(*done, completed(1))],
        *([stream(completed(number))] for number in (2, 3, 4)),
        [answer(UNKNOWN, status=b"400 Bad Request")],
    ]
    async with connected(stage) as socket:
        await turn(socket, store=False)
        assert stage.plane.sockets_keep.used
        await turn(socket, store=False, previous_response_id="resp_1", input=[result])
        await turn(socket, store=False, previous_response_id="resp_2", input="more")
        assert await turn(socket, store=True, previous_response_id="resp_3") == ["response.completed"]
        # It goes on from the last one alone, and on its own connection.
        async with connected(stage) as other:
            assert await turn(other, store=False, previous_response_id="resp_3") == ["error"]
    bodies = [json.loads(one.body) for one in stage.upstream.received]
    first = {"role": "user", "content": "hi"}
    again = [{name: value for name, value in one.items() if name != "id"} for one in (thought, call)]
    assert bodies[0]["input"] == "hi"
    assert bodies[1]["input"] == [first, *again, result]
    assert bodies[2]["input"] == [first, *again, result, {"role": "user", "content": "more"}]
    assert bodies[3]["input"] == [*bodies[2]["input"], first]
    assert [one.get("previous_response_id") for one in bodies] == [None] * 4 + ["resp_3"]
    await eventually(lambda: stage.plane.sockets_keep.used == 0)


async def test_unstored_responses_are_continued_from_the_last_response_stored_at_the_upstream(
    stage: Stage,
) -> None:
    stage.upstream.scripts = [[stream(completed(1))], [stream(completed(2))], [stream(completed(3))]]
    async with connected(stage) as socket:
        await turn(socket)
        await turn(socket, store=False, previous_response_id="resp_1", input="more")
        await turn(socket, store=False, previous_response_id="resp_2", input="most")
    body = json.loads(stage.upstream.received[2].body)
    assert body["previous_response_id"] == "resp_1"
    assert [one["content"] for one in body["input"]] == ["more", "most"]


async def test_unstored_response_larger_than_the_kept_bytes_is_forgotten_and_cannot_be_continued() -> None:
    async with staged(ROUTES, sockets_kept_bytes_max=1024) as stage:
        stage.upstream.scripts = [[WHOLE], [answer(UNKNOWN, status=b"400 Bad Request")]]
        async with connected(stage) as socket:
            await turn(socket, store=False, input="x" * 2000)
            assert await turn(socket, store=False, previous_response_id="resp_1") == ["error"]
        assert stage.plane.sockets_keep.used == 0


async def test_input_kept_for_a_websocket_counts_toward_the_kept_bytes_until_refused_or_closed(
    stage: Stage,
) -> None:
    stage.directory.caller = replace(CALLER, models=frozenset({"m"}))
    go_on = asyncio.Event()
    stage.upstream.scripts = [[stream(DELTA, end=False), go_on, chunks(event(completed()))]]
    long = CREATE | {"store": False, "input": "x" * 100_000}
    async with connected(stage) as socket:
        body = next(iter(stage.plane._connections)).body
        await socket.send_json(long | {"model": "other"})
        assert (await refused(socket))[1] == "model_not_allowed"
        assert body.messages is not None
        assert body.messages.size == stage.plane.sockets_keep.used == 0
        await socket.send_json(long)
        assert (await received(socket))["type"] == "response.output_text.delta"
        assert stage.plane.sockets_keep.used > 100_000
        go_on.set()
        assert (await received(socket))["type"] == "response.completed"
    await eventually(lambda: stage.plane.sockets_keep.used == 0)


async def test_gateway_stops_reading_from_a_websocket_client_that_does_not_read_answers() -> None:
    async with staged(ROUTES) as stage, connected(stage) as socket:
        transport, reader = socket._conn.transport, socket._reader._protocol.transport
        connection = next(iter(stage.plane._connections))
        # The kernel holds little of what is not taken.
        connection.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, 4_096)
        reader.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_RCVBUF, 4_096)
        reader.pause_reading()
        transport.write((b"\x82\x80" + bytes(4)) * 1_500)  # empty binary ones
        await eventually(lambda: connection.blocked)
        await asyncio.sleep(0)
        assert connection.transport.get_write_buffer_size() < 64 << 10
        reader.resume_reading()
        for _ in range(1_500):
            await refused(socket)
        stage.upstream.scripts = [[WHOLE]]
        assert await turn(socket) == ["response.output_text.delta", "response.completed"]


async def test_second_response_on_a_websocket_is_refused_while_the_first_is_in_progress(stage: Stage) -> None:
    go_on = asyncio.Event()
    stage.upstream.scripts = [[stream(DELTA, end=False), go_on, chunks(event(completed()))], [WHOLE]]
    async with connected(stage) as socket:
        await socket.send_json(CREATE)
        assert (await received(socket))["type"] == "response.output_text.delta"
        await socket.send_json(CREATE)
        assert (await refused(socket))[2].startswith("A response is being made")
        go_on.set()
        assert (await received(socket))["type"] == "response.completed"
        assert await turn(socket) == ["response.output_text.delta", "response.completed"]
        assert len(stage.counters.holds) == len(stage.upstream.received) == 2


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_client_that_leaves_a_responses_websocket_is_charged_the_whole_response(
    stage: Stage, how: str
) -> None:
    go_on = asyncio.Event()
    stage.upstream.scripts = [[stream(DELTA, end=False), go_on, chunks(event(completed()))]]
    async with connected(stage) as socket:
        await socket.send_json(CREATE)
        await received(socket)
        if how == "close":
            await socket.close()
        else:
            transport = socket.get_extra_info("socket")
            assert transport is not None
            socket._writer.transport.abort()
    await eventually(lambda: not stage.connections)
    go_on.set()
    await stage.settled()
    assert [one.tokens for one in stage.counters.charges] == [12]
    assert stage.plane.sockets.used == 0


async def test_upstream_breaking_off_closes_the_websocket_and_is_charged_like_a_posted_call(
    stage: Stage,
) -> None:
    stage.upstream.scripts = [[stream(DELTA, end=False), Close()] for _ in range(2)]
    async with connected(stage) as socket:
        await socket.send_json(CREATE)
        await received(socket)
        end = await socket.receive(WITHIN_S)
        assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, 1011)
    body = {name: value for name, value in CREATE.items() if name != "type"} | {"stream": True}
    assert not (await stage.ask(post(json.dumps(body).encode(), b"/v1/responses"))).complete
    await stage.settled(2)
    first, second = stage.counters.charges
    assert (first.tokens, first.credits) == (second.tokens, second.credits)


async def test_websocket_message_of_too_many_bytes_or_frames_is_413_and_closes_the_socket() -> None:
    async with staged(ROUTES, body_bytes_max=4096, socket_frames_max=10) as stage:
        for frames in ([b"x" * 5000], [b"x" * 2000] * 3, [b""] * 11):
            async with connected(stage) as socket:
                for number, one in enumerate(frames):
                    frame = bytes([0 if number else 1, 0x80 | 126]) + len(one).to_bytes(2, "big")
                    short = bytes([0 if number else 1, 0x80])
                    socket._conn.transport.write((frame if one else short) + bytes(4) + one)
                assert (await refused(socket))[:2] == (413, "request_too_large")
                assert (await socket.receive(WITHIN_S)).data == 1009
        assert not stage.counters.holds
        await eventually(lambda: stage.plane.buffers.used == stage.plane.sockets.used == 0)


async def test_organization_may_open_only_a_configured_share_of_all_websockets() -> None:
    async with staged(ROUTES, sockets_max=4, sockets_share=0.5) as stage:
        async with connected(stage), connected(stage):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with connected(stage):
                    pass
            assert caught.value.status == 503
            stage.directory.caller = replace(CALLER, organization_id=8)
            async with connected(stage):
                assert stage.plane.sockets.used == 3
        await eventually(lambda: stage.plane.sockets.used == 0)


async def test_idle_websocket_and_websocket_of_a_stopping_worker_are_closed() -> None:
    async with staged(ROUTES, socket_idle_s=0.05) as stage, connected(stage) as socket:
        assert (await socket.receive(WITHIN_S)).data == 1001
    async with staged(ROUTES) as stage, connected(stage) as socket:
        await socket.ping(b"x")
        ended = asyncio.create_task(stage.plane.drain(WITHIN_S))
        assert (await socket.receive(WITHIN_S)).data == 1001
        await socket.close()
        await ended


async def test_websocket_client_that_reads_no_events_is_disconnected_and_charged() -> None:
    async with staged(ROUTES, client_write_s=1.0, drain_bytes_max=1 << 16) as stage:
        written = 0

        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            await reader.readuntil(b"\r\n\r\n")
            writer.write(STREAM_HEAD)
            while True:
                part = chunks(*[event(DELTA | {"delta": "x" * 4000})] * 16, end=False)
                writer.write(part)
                await writer.drain()
                written += len(part)

        stage.upstream.handler = endless
        async with connected(stage) as socket:
            socket._reader._protocol.transport.pause_reading()
            await socket.send_json(CREATE)
            await eventually(lambda: any(one.blocked for one in stage.plane._connections))
            assert stage.plane.buffers.used < 1 << 20
            await eventually(lambda: not stage.connections)
        await stage.settled()
        assert stage.counters.charges
        assert written < 64 << 20


async def test_many_events_and_long_events_reach_the_websocket_client_unchanged(stage: Stage) -> None:
    long = DELTA | {"delta": "é" * 700_000}
    stage.upstream.scripts = [[stream(*[DELTA] * 300, long, completed())]]
    async with connected(stage) as socket:
        await socket.send_json(CREATE)
        got = [await received(socket) for _ in range(302)]
        assert got[:300] == [DELTA] * 300
        assert got[300] == long
        assert got[301] == completed()
